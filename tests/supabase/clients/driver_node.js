// The driver in Node: `node driver_node.js supabase-2026`.

import { createRequire } from "node:module";
import readline from "node:readline";
import WebSocket from "ws";
import { driver } from "./driver.js";

const { createClient } = createRequire(import.meta.url)(process.argv[2]);
const command = driver(createClient, WebSocket, (happened) => process.stdout.write(`${JSON.stringify(happened)}\n`));
for await (const line of readline.createInterface({ input: process.stdin })) void command(JSON.parse(line));
process.exit(0);
