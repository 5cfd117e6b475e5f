// A coach's page: who needs care now, the live queue, the states over time, and one person in detail.
//
// The channels are held before everything is read, so a change is in what is read, or comes as an event, or both. What
// comes while it is being read is folded in again afterwards.

import { distribution, gauge, trend } from "./charts.js";
import { badge, begin, element, fill, find, lines } from "./page.js";

const DAYS = 30;
const STATES = ["NeedsCare", "Steady", "Rising"];
const OPEN = new Set(["scheduled", "in_progress"]);
const AGAIN_MS = 5_000;
const DAYS_AFTER_MS = 1_000;
const MOST_CHANNELS = 400;
const KEPT = "overview";

const page = await begin({ channels: ["interventions:coaches"] });
if (page !== null) run(page);

function run({ client, address, ask }) {
  const names = new Map(address.getAll("person").map((one) => [one.slice(0, 36), one.slice(37)]));
  const nameOf = (id) => names.get(id) || id.slice(0, 8);
  let people = new Map();
  let queue = new Map();
  let meanwhile = null;
  let count = 0;
  let shownId = null;
  let daysLater;

  if (address.has("name")) find("name").textContent = `${address.get("name")}’s`;

  // What is read

  async function readAll() {
    if (meanwhile !== null) return; // it is being read
    meanwhile = [];
    try {
      let overview = await ask("/sync/overview", { days: DAYS });
      const missing = channelsOf(overview).filter((channel) => !client.channels.includes(channel));
      if (missing.length > 0) {
        await client.subscribe(missing);
        overview = await ask("/sync/overview", { days: DAYS });
      }
      take(overview);
      client.cache.drop([KEPT]);
      await client.cache.get(KEPT, () => overview, { persistent: true });
      for (const event of meanwhile) fold(event);
    } catch (error) {
      find("problem").textContent = error.message;
      setTimeout(() => client.state.status === "live" && readAll(), AGAIN_MS);
    }
    meanwhile = null;
    show();
  }

  const channelsOf = ({ people: found }) => found.slice(0, MOST_CHANNELS).map((one) => `momentum_updates:${one.user_id}`);

  function take(overview) {
    people = new Map(overview.people.map((one) => [one.user_id, one]));
    queue = new Map(overview.interventions.map((one) => [one.id, one]));
    fill(find("days"), distribution(overview.days));
  }

  // What comes

  function fold(event) {
    const { type, userId, fields } = event;
    if (type === "momentum_score_created" || type === "momentum_score_updated") {
      const known = people.get(userId);
      if (known && fields.score_date < known.score_date) return;
      people.set(userId, { user_id: userId, ...fields });
    } else if (type === "momentum_score_deleted") {
      void readAll();
    } else if (type.startsWith("intervention_")) {
      const id = fields.intervention_id;
      if (type === "intervention_deleted" || !OPEN.has(fields.status)) queue.delete(id);
      else queue.set(id, { ...fields, id });
      if (!people.has(userId)) void readAll(); // somebody new, whose scores may be seen from now on
    }
  }

  /** The bars of the days are the database's count; it is asked again once events pause. */
  function daysSoon() {
    clearTimeout(daysLater);
    daysLater = setTimeout(async () => {
      try {
        fill(find("days"), distribution((await ask("/sync/overview", { days: DAYS })).days));
      } catch (error) {
        find("problem").textContent = error.message;
      }
    }, DAYS_AFTER_MS);
  }

  // What is seen

  function show() {
    const all = [...people.values()].sort((a, b) => a.final_score - b.final_score);
    const inNeed = all.filter((one) => one.momentum_state === "NeedsCare");
    find("care-count").textContent = inNeed.length;
    fill(find("care"), ...lines(inNeed.map(person), "Nobody."));
    fill(find("people"), ...lines(all.filter((one) => one.momentum_state !== "NeedsCare").map(person), "Nobody else."));
    fill(
      find("counts"),
      ...STATES.map((state) => {
        const number = all.filter((one) => one.momentum_state === state).length;
        return element("li", { "data-state": state }, badge(state), ` ${number}`);
      }),
    );
    for (const button of document.querySelectorAll("[data-person]")) button.onclick = () => showPerson(button.dataset.key);
    showQueue();
    if (shownId !== null) showNow(shownId);
  }

  function person({ user_id: id, final_score: score, momentum_state: state }) {
    return element(
      "li",
      {},
      element("button", { type: "button", class: "plain", "data-key": id, "data-person": "" }, nameOf(id)),
      element("span", {}, `${Number(score).toFixed(1)} `, badge(state)),
    );
  }

  function showQueue() {
    const types = [...new Set([...queue.values()].map((one) => one.intervention_type))].sort();
    const chosen = find("by-type").value;
    fill(find("by-type"), ...["", ...types].map((type) => element("option", { value: type }, type.replaceAll("_", " ") || "all")));
    find("by-type").value = types.includes(chosen) ? chosen : "";
    const text = find("by-text").value.trim().toLowerCase();
    const rows = [...queue.values()]
      .filter((one) => !find("by-status").value || one.status === find("by-status").value)
      .filter((one) => !find("by-type").value || one.intervention_type === find("by-type").value)
      .filter((one) => `${nameOf(one.user_id)} ${one.trigger_reason}`.toLowerCase().includes(text))
      .sort((a, b) => `${a.scheduled_date ?? "~"}${a.id}`.localeCompare(`${b.scheduled_date ?? "~"}${b.id}`));
    find("queue-count").textContent = rows.length;
    fill(find("queue"), ...rows.map(queued));
  }

  function queued({ user_id: id, intervention_type: type, trigger_reason: reason, scheduled_date: date, status }) {
    const cells = [type.replaceAll("_", " "), reason, date ?? "", status.replaceAll("_", " ")];
    return element("tr", {}, element("th", { scope: "row" }, nameOf(id)), ...cells.map((text) => element("td", {}, text)));
  }

  // One person

  async function showPerson(id) {
    shownId = id;
    find("detail-name").textContent = nameOf(id);
    fill(find("detail-trend"), element("p", { class: "soft" }, "…"));
    showNow(id);
    if (!find("detail").open) find("detail").showModal();
    try {
      fill(find("detail-trend"), trend(await ask("/sync/history", { user_id: id, days: DAYS })));
    } catch (error) {
      fill(find("detail-trend"), element("p", { class: "soft" }, `The days cannot be read now: ${error.message}`));
    }
  }

  function showNow(id) {
    const { final_score: score = null, momentum_state: state } = people.get(id) ?? {};
    fill(find("detail-gauge"), gauge(score, state), element("p", { class: "centre" }, badge(state)));
    const own = [...queue.values()].filter((one) => one.user_id === id);
    const items = own.map((one) => element("li", {}, `${one.intervention_type.replaceAll("_", " ")}: ${one.trigger_reason}`));
    fill(find("detail-interventions"), ...lines(items, "None is open."));
  }

  find("detail-close").addEventListener("click", () => find("detail").close());
  find("detail").addEventListener("close", () => {
    document.querySelector(`[data-person][data-key="${shownId}"]`)?.focus(); // the button may be another by now
    shownId = null;
  });
  find("filters").addEventListener("input", showQueue);
  find("filters").addEventListener("submit", (event) => event.preventDefault());

  client.addEventListener("resync", () => void readAll());
  client.addEventListener("event", (event) => {
    count += 1;
    find("count").textContent = count;
    meanwhile?.push(event);
    fold(event);
    if (event.type.startsWith("momentum_score_")) daysSoon();
    show();
  });
  let wasLive = false;
  client.addEventListener("state", ({ status }) => {
    const isLive = status === "live";
    if (isLive && !wasLive && people.size === 0) void readAll();
    wasLive = isLive;
    const kept = client.cache.peek(KEPT);
    if (!isLive && people.size === 0 && kept) {
      take(kept.value); // as it was known when there was a connection
      show();
    }
  });
  show();
  client.start();
}
