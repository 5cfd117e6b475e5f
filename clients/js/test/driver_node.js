// The driver in Node: reads one JSON command per line from standard input and writes events to standard output.

import { createInterface } from "node:readline";

import WebSocket from "ws";

import { FileStore } from "../src/node.js";
import { drive } from "./driver.js";

const command = drive(
  (happened) => process.stdout.write(`${JSON.stringify(happened)}\n`),
  (path) => new FileStore(path),
  { WebSocket: globalThis.WebSocket ?? WebSocket },
);
createInterface({ input: process.stdin }).on("line", (line) => void command(JSON.parse(line)));
