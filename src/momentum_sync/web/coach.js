// A coach's page: the live queue of interventions, and how the people stand.
//
// The subscription is live before the lists are read, so a change is in the list, or comes as an event, or both;
// what came as an event meanwhile is newer than the list and stands.

import { connect, element, fromAddress, showStatus } from "./connection.js";

const STATES = ["Rising", "Steady", "NeedsCare"];
const OPEN = new Set(["scheduled", "in_progress"]);

const address = fromAddress();
const token = address.get("access_token") ?? "";
const people = new Map(
  address.getAll("person").map((person) => [person.slice(0, 36), person.slice(37) || person.slice(0, 8)]),
);
const find = (id) => document.querySelector(`#${id}`);

let standing = new Map();
let queue = new Map();
let newer = new Set();
const days = new Map();
let count = 0;

find("name").textContent = address.has("name") ? `${address.get("name")}’s` : "The";

async function read(path, userId) {
  const response = await fetch(path, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ user_id: userId }),
  });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body.data;
}

async function readPerson(userId) {
  const [momentum, { interventions }] = await Promise.all([
    read("/sync/momentum", userId),
    read("/sync/interventions", userId),
  ]);
  if (momentum.has_data && !newer.has(userId)) {
    standing.set(userId, momentum.momentum_state);
    days.set(userId, momentum.score_date);
  }
  for (const intervention of interventions) {
    if (!newer.has(intervention.id)) queue.set(intervention.id, { ...intervention, user_id: userId });
  }
}

function show() {
  const total = Math.max(1, standing.size);
  for (const state of STATES) {
    const here = [...standing.values()].filter((held) => held === state).length;
    find(`count-${state}`).textContent = here;
    const part = document.querySelector(`#bar [data-momentum=${state}]`);
    part.style.setProperty("flex-grow", here / total);
    part.textContent = here || "";
  }
  find("people").replaceChildren(
    ...[...people].map(([id, name]) => element("span", name, { "data-momentum": standing.get(id) ?? "" })),
  );
  const rows = [...queue.values()].sort((a, b) => `${a.scheduled_date}${a.id}`.localeCompare(`${b.scheduled_date}${b.id}`));
  find("queue").replaceChildren(
    ...rows.map((row) => {
      const line = element("tr", "");
      line.append(
        element("td", people.get(row.user_id) ?? row.user_id.slice(0, 8)),
        element("td", row.intervention_type.replaceAll("_", " ")),
        element("td", row.trigger_reason),
        element("td", row.scheduled_date ?? ""),
        element("td", row.status.replaceAll("_", " ")),
      );
      return line;
    }),
  );
}

const on = {
  async initial_state() {
    standing = new Map();
    queue = new Map();
    newer = new Set();
    const read = await Promise.allSettled([...people.keys()].map(readPerson));
    const failed = read.find((result) => result.status === "rejected");
    if (failed) showStatus("live", failed.reason.message);
    show();
  },
  realtime_event({ event }) {
    count += 1;
    find("count").textContent = count;
    if (event.event_type.startsWith("momentum_score_")) {
      newer.add(event.user_id);
      if (event.event_type === "momentum_score_deleted") {
        newer.delete(event.user_id);
        standing.delete(event.user_id);
        readPerson(event.user_id).then(show, (error) => showStatus("live", error.message));
      } else if (event.score_date >= (days.get(event.user_id) ?? "")) {
        days.set(event.user_id, event.score_date);
        standing.set(event.user_id, event.momentum_state);
      }
    } else if (event.event_type.startsWith("intervention_")) {
      newer.add(event.intervention_id);
      if (event.event_type !== "intervention_deleted" && OPEN.has(event.status)) {
        queue.set(event.intervention_id, { ...event, id: event.intervention_id });
      } else {
        queue.delete(event.intervention_id);
      }
    }
    show();
  },
};

connect({
  token,
  query: { channels: ["interventions:coaches", ...[...people.keys()].map((id) => `momentum_updates:${id}`)].join(",") },
  on,
  status: showStatus,
  roundTrip: (ms) => {
    find("round-trip").textContent = `${ms.toFixed(1)} ms`;
  },
});
