// What a program for language servers sees of `mlxsup stdio`, through its library as it is: one JSON text.
import { spawn } from "node:child_process";
import { once } from "node:events";
import rpc from "vscode-jsonrpc/node";

const MODEL = "smollm2-135m";

const server = spawn("mlxsup", ["stdio"], { stdio: ["pipe", "pipe", "inherit"] });
const ended = once(server, "exit");
const connection = rpc.createMessageConnection(
  new rpc.StreamMessageReader(server.stdout),
  new rpc.StreamMessageWriter(server.stdin),
);

const seen = { progress: [], deltas: {} };
let onDelta = () => {};
connection.onUnhandledProgress(({ token, value }) => seen.progress.push({ token, phase: value.phase }));
connection.onNotification("stream/delta", ({ id, text }) => {
  (seen.deltas[id] ??= []).push(text);
  onDelta();
});
connection.listen();

function chat(content, rest, token) {
  const params = { model: MODEL, messages: [{ role: "user", content }], temperature: 0, stream: true, ...rest };
  return connection.sendRequest("chat", params, token);
}

// The library counts its requests from 0: an id that is false in many a language.
seen.loaded = await connection.sendRequest("model/load", { model: MODEL });
seen.answer = await chat("What is the capital of France?", {}, rpc.CancellationToken.None);

const impatience = new rpc.CancellationTokenSource();
onDelta = () => impatience.cancel();
seen.cancelled = await chat("Tell me everything about France.", { max_tokens: 4096 }, impatience.token);

seen.refused = await connection.sendRequest("chat", { model: MODEL, messages: [], temprature: 1 }).then(
  () => "no error",
  ({ code, data }) => ({ code, data }),
);

server.stdin.end();
[seen.status] = await ended;
connection.dispose();
process.stdout.write(JSON.stringify(seen));
