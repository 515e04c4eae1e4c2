// Asks the supervisor that listens at the path of its argument, and ends its input at once, like `nc -N`.
import { connect } from "node:net";

const socket = connect(process.argv[2]).setEncoding("utf8");
const messages = [{ role: "user", content: "What is the capital of France?" }];
const params = { model: "smollm2-135m", messages, temperature: 0 };
socket.end(JSON.stringify({ jsonrpc: "2.0", id: "over a socket", method: "chat", params }) + "\n");

let answer = "";
for await (const chunk of socket) answer += chunk;
process.stdout.write(answer);
