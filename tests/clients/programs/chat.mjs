import { spawn } from "node:child_process";

const server = spawn("mlxsup", ["stdio"], { stdio: ["pipe", "pipe", "inherit"] });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const params = { model: "smollm2-135m", messages, temperature: 0, stream: true };
server.stdin.end(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "chat", params }) + "\n");

let rest = "";
for await (const chunk of server.stdout.setEncoding("utf8")) {
  const lines = (rest + chunk).split("\n");
  rest = lines.pop();
  for (const { params, error } of lines.map((line) => JSON.parse(line)))
    process.stdout.write(error?.message ?? params?.text ?? "\n");
}
