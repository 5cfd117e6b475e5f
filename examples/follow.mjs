// Follow a user: every committed change in order, and the state as it is now, also across a restart.

import { Client } from "momentum-sync";
import { FileStore } from "momentum-sync/node";

const url = process.env.MOMENTUM_URL ?? "http://127.0.0.1:8787";
const freshToken = async () => process.env.MOMENTUM_TOKEN; // from where your app signs in
const WebSocket = globalThis.WebSocket ?? (await import("ws")).default; // Node has one from 22 on; before: npm install ws
const client = new Client(url, freshToken, { store: new FileStore("momentum.json"), WebSocket });

client.addEventListener("error", (error) => console.log(error.name, error.message)); // it goes on, unless it is an Ended
client.start();
for await (const event of client.events()) {
  if (event.kind === "resync") console.log("as of now:", JSON.stringify(client.state.momentum));
  else console.log(event.type, JSON.stringify(event.fields));
}
