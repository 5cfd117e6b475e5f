// The momentum app with Supabase's client, unmodified. After `npm install` and channels.sql:
//
//   node app.mjs user                     a phone: the user's score, and messages on the user's own channel
//   node app.mjs coach                    a dashboard: interventions, and which coaches are there
//   node app.mjs remind <user> <text>     an edge function: a message to a user, by HTTP
//
// MOMENTUM_URL is the server, ACCESS_TOKEN the token of the user or coach. `remind` needs SERVICE_ROLE_KEY instead.

import { createClient } from "@supabase/supabase-js";

const transport = globalThis.WebSocket ?? (await import("ws")).default; // Node has one from 22 on
const url = process.env.MOMENTUM_URL ?? "http://127.0.0.1:8787";
const [, , role, ...given] = process.argv;

function connect(key) {
  return createClient(url, key, {
    accessToken: async () => key, // your app returns its session's token
    realtime: {
      params: { client_id: crypto.randomUUID() }, // one for each client object: it makes the resume exact
      transport,
    },
  });
}

// The status of a channel, and whether something is missing after a reconnect. At Supabase an app has to read its data
// again after each one.
function watched(channel) {
  return channel
    .on("system", {}, ({ extension, message }) => {
      if (extension === "resume" && message.startsWith("ResumeGap")) console.log("read the data again");
    })
    .subscribe((status, error) => console.log("status", channel.topic, status, error?.message ?? ""));
}

async function user() {
  const supabase = connect(process.env.ACCESS_TOKEN);
  await supabase.realtime.setAuth();
  const id = JSON.parse(atob(process.env.ACCESS_TOKEN.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub;
  const scores = { event: "*", schema: "public", table: "daily_engagement_scores", filter: `user_id=eq.${id}` };
  watched(
    supabase.channel("my-score").on("postgres_changes", scores, ({ eventType, new: score }) =>
      console.log("score", eventType, score.final_score, score.momentum_state),
    ),
  );
  watched(
    supabase
      .channel(`momentum_updates:${id}`, { config: { private: true } })
      .on("broadcast", { event: "*" }, ({ event, payload }) => console.log("message", event, JSON.stringify(payload))),
  );
}

async function coach() {
  const supabase = connect(process.env.ACCESS_TOKEN);
  await supabase.realtime.setAuth();
  const interventions = { event: "*", schema: "public", table: "coach_interventions" };
  watched(
    supabase.channel("interventions").on("postgres_changes", interventions, ({ eventType, new: row }) =>
      console.log("intervention", eventType, row.intervention_type, row.status),
    ),
  );
  const coaches = supabase.channel("coaches", { config: { private: true, presence: { key: "me" } } });
  coaches.on("presence", { event: "sync" }, () => {
    const names = Object.values(coaches.presenceState()).flat().map((each) => each.name);
    console.log("coaches", names.sort().join(", "));
  });
  watched(coaches);
  const joined = () => coaches.state === "joined";
  while (!joined()) await new Promise((resolve) => setTimeout(resolve, 50));
  await coaches.track({ name: given[0] ?? "A coach" });
}

async function remind(to, text) {
  const supabase = connect(process.env.SERVICE_ROLE_KEY);
  const channel = supabase.channel(`momentum_updates:${to}`, { config: { private: true } });
  await channel.httpSend("reminder", { text });
  process.exit(0); // a timer of supabase-js would hold the process for 10 s
}

const roles = { user, coach, remind };
const needed = role === "remind" ? "SERVICE_ROLE_KEY" : "ACCESS_TOKEN";
if (!Object.hasOwn(roles, role) || !process.env[needed]) {
  console.error(`usage: ${needed}=… node app.mjs user | coach [name] | remind <user> <text>`);
  process.exit(2);
}
await roles[role](...given);
