// A user's page: the current or last known state, and unread notifications.

import { gauge, trend } from "./charts.js";
import { badge, begin, dayOf, element, fill, find, lines, Names, onceAFrame, write } from "./page.js";

const HISTORY_DAYS = 30;
const DETAILS_AFTER_MS = 700;
const AGAIN_MS = 5_000;
const SHOWN = "shown:history";

const page = await begin();
if (page !== null) run(page);

function run({ client, ask }) {
  let count = 0;
  let detailsLater;
  let drawn = false;

  const names = new Names(ask, showName);

  function showName() {
    const id = client.userId;
    if (id !== null && names.of(id) !== id.slice(0, 8)) write(find("name"), `${names.of(id)}’s`);
  }

  function show({ momentum, interventions, notifications, status, since }) {
    if (since === null && status !== "live") return; // nothing is known yet
    const score = momentum?.final_score ?? null;
    fill(find("gauge"), gauge(score, momentum?.momentum_state));
    fill(find("state"), badge(momentum?.momentum_state));
    showBreakdown(momentum?.breakdown ?? null);
    showNotifications(notifications);
    fill(find("interventions"), ...lines(interventions.map(intervention), "No interventions planned."));
    if (status === "live" && momentum?.has_data && !momentum.breakdown) detailsSoon();
    if (!drawn && client.userId !== null) {
      drawn = true;
      void names.want([client.userId]);
      void showTrend();
    }
  }

  function showBreakdown(breakdown) {
    if (breakdown === null) return; // not known for a moment: what is there stays
    const rows = Object.entries(breakdown).filter(([, value]) => typeof value === "number");
    fill(find("breakdown"), ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
  }

  function showNotifications(notifications) {
    write(find("unread"), String(notifications.length));
    fill(find("notifications"), ...lines(notifications.map(notification), "No unread notifications."));
    for (const button of find("notifications").querySelectorAll("button")) button.onclick = () => read(button.dataset.key);
    const waiting = client.state.status === "live" ? 0 : client.pendingCount;
    write(find("to-send"), waiting > 0 ? `${waiting} marked as read; sent when the connection is back` : "");
  }

  function read(id) {
    const next = find("notifications").querySelector(`li:has([data-key="${id}"]) + li button`) ?? find("notifications-title");
    next.focus();
    client.markNotificationRead(id).catch(() => {}); // it is marked, and sent while the page is open
  }

  /** Events come without the breakdown; it is asked for once they pause. */
  function detailsSoon() {
    clearTimeout(detailsLater);
    detailsLater = setTimeout(() => client.requestMomentumUpdate().catch(() => {}), DETAILS_AFTER_MS);
  }

  const historyKey = () => `momentum:history:${client.userId}`;

  async function showTrend() {
    try {
      const fetchIt = () => ask("/sync/history", { user_id: client.userId, days: HISTORY_DAYS });
      const days = await client.cache.get(historyKey(), fetchIt, { persistent: true });
      fill(find("trend"), trend(days));
      client.cache.drop([SHOWN]);
      await client.cache.get(SHOWN, () => days, { persistent: true });
    } catch {
      const shown = client.cache.peek(SHOWN); // not the latest, as the notice says
      if (shown) fill(find("trend"), trend(shown.value));
      if (client.state.status === "live") setTimeout(showTrend, AGAIN_MS);
      else drawn = false; // when it is live again
    }
  }

  client.addEventListener("state", onceAFrame(() => show(client.state)));
  client.addEventListener("invalidated", (keys) => {
    if (keys.includes(historyKey())) void showTrend();
  });
  client.addEventListener("event", (event) => {
    count += 1;
    find("count").textContent = count;
    find("latency").textContent = `${Math.max(0, Date.now() - Date.parse(event.timestamp))} ms`;
  });
  show(client.state);
  client.start();
}

function notification({ id, title, message }) {
  return element(
    "li",
    {},
    element("div", {}, element("b", {}, title), element("p", {}, message)),
    element("button", { type: "button", "data-key": id, "aria-label": `Mark as read: ${title}` }, "Mark as read"),
  );
}

function intervention({ intervention_type: type, trigger_reason: reason, scheduled_date: date, status }) {
  return element(
    "li",
    {},
    element("div", {}, element("b", {}, type.replaceAll("_", " ")), element("p", {}, reason)),
    element("span", { class: "soft" }, [date && dayOf(date), status.replaceAll("_", " ")].filter(Boolean).join(", ")),
  );
}
