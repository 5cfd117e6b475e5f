// The SDK as a TypeScript program sees it. This is compiled, not run.

import { Client, Ended, LocalStore, type Momentum, type State } from "../src/index.js";
import { FileStore } from "../src/node.js";

const client = new Client("https://api.example.com", async () => "token", {
  channels: ["interventions:coaches"],
  store: new LocalStore("momentum"),
  log: (level, message) => void [level satisfies "info" | "warning", message.length],
});

const off: () => void = client.addEventListener("event", (event) => {
  event.type satisfies string;
  event.fields.event_type satisfies string;
  // @ts-expect-error there is no such field
  event.kind satisfies "resync";
});
off();
client.addEventListener("state", (state: State) => state.momentum?.final_score?.toFixed(1));
client.addEventListener("error", (error) => error instanceof Ended && error.reason.length);
// @ts-expect-error there is no such event
client.addEventListener("weather", () => {});

export async function follow(): Promise<Momentum | null> {
  client.start();
  for await (const one of client.events()) {
    if (one.kind === "resync") one.reason satisfies string | null;
    else one.channel satisfies string;
  }
  const history: number[] = await client.cache.get("momentum:history:x", async () => [1, 2], { persistent: true });
  history.length satisfies number;
  await client.markNotificationRead("id");
  return (await client.waitUntilLive()).momentum;
}

new Client("https://api.example.com", "token", { store: new FileStore("state.json") });
