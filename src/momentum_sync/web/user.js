// A user's page: the momentum as the snapshot has it, then every event.

import { connect, element, fromAddress, showStatus } from "./connection.js";

const POINTS = 60;
const EVENTS = 12;

const address = fromAddress();
const find = (id) => document.querySelector(`#${id}`);
const trend = [];
let count = 0;
let confirmed = 0;
let unread = new Set();
let day = "";

find("name").textContent = address.has("name") ? `${address.get("name")}’s` : "Your";

function showScore(score, state) {
  find("score").textContent = Number(score).toFixed(1);
  find("state").textContent = state === "NeedsCare" ? "Needs care" : state;
  find("state").dataset.momentum = state;
  trend.push(Number(score));
  trend.splice(0, trend.length - POINTS);
  const points = trend.length > 1 ? trend : [trend[0], trend[0]];
  const width = 100 / (points.length - 1);
  find("trend").setAttribute("points", points.map((value, index) => `${index * width},${100 - value}`).join(" "));
}

function showEvent(event) {
  count += 1;
  find("count").textContent = count;
  const late = Date.now() - Date.parse(event.timestamp);
  find("latency").textContent = `${Math.max(0, late)} ms`;
  const row = element("li", "");
  row.append(
    element("span", new Date(event.timestamp).toLocaleTimeString()),
    element("span", describe(event)),
    element("span", event.id.split("-").pop()),
  );
  find("events").prepend(row);
  while (find("events").children.length > EVENTS) find("events").lastChild.remove();
}

function describe(event) {
  switch (event.event_type) {
    case "push_notification":
      return `${event.title}: ${event.message} (${event.status})`;
    case "momentum_score_created":
    case "momentum_score_updated":
      return `Score ${event.final_score}, ${event.momentum_state}${event.state_changed ? ", a new state" : ""}`;
    default:
      return [event.event_type.replaceAll("_", " "), event.trigger_reason, event.status].filter(Boolean).join(", ");
  }
}

const on = {
  initial_state({ momentum, notifications }) {
    if (momentum?.has_data) {
      day = momentum.score_date;
      showScore(momentum.final_score, momentum.momentum_state);
    }
    unread = new Set(notifications.map((notification) => notification.id));
    find("unread").textContent = unread.size;
  },
  realtime_event({ event }) {
    if (event.event_type === "momentum_score_created" || event.event_type === "momentum_score_updated") {
      if (event.score_date >= day) {
        day = event.score_date;
        showScore(event.final_score, event.momentum_state);
      }
    } else if (event.event_type === "push_notification") {
      const read = event.status === "opened" || event.status === "clicked";
      if (read) unread.delete(event.notification_id);
      else unread.add(event.notification_id);
      find("unread").textContent = unread.size;
    }
    showEvent(event);
  },
  cache_invalidation_confirmed() {
    confirmed += 1;
    find("confirmed").textContent = confirmed;
  },
};

connect({
  token: address.get("access_token") ?? "",
  query: address.has("user_id") ? { user_id: address.get("user_id") } : {},
  on,
  status: showStatus,
  roundTrip: (ms) => {
    find("round-trip").textContent = `${ms.toFixed(1)} ms`;
  },
});
