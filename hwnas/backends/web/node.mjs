// The engine in node: a line of JSON on standard input is a question, one on standard output its answer. Ends when its input does.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { answer, makeEngine } from "./engine.mjs";

console.log = console.info = console.error; // standard output is for answers
const [packages, threads] = process.argv.slice(2);
const engine = makeEngine(createRequire(`${packages}/`)("onnxruntime-web"), Number(threads));
const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit(0));
for await (const line of lines) process.stdout.write(JSON.stringify(await answer(engine, JSON.parse(line))) + "\n");
