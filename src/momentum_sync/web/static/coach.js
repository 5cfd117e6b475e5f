// A coach's page: people in need of care, the live queue, the states over time, and one person in detail.
//
// The page subscribes before it reads, so a change is in the data read, or arrives as an event, or both. Events that
// arrive during the read are folded in again afterwards.

import { distribution, gauge, trend } from "./charts.js";
import { badge, begin, dayOf, element, fill, find, focus, lines, Names, onceAFrame, problem, write } from "./page.js";

const DAYS = 30;
const STATES = ["NeedsCare", "Steady", "Rising"];
const OPEN = new Set(["scheduled", "in_progress"]);
const AGAIN_MS = 5_000;
const DAYS_AFTER_MS = 1_000;
const KEEP_AFTER_MS = 1_000;
const MOST_PEOPLE = 500; // as the server has it
const MOST_CHANNELS = 400;
const KEPT = "overview";
const PEOPLE_A_PART = 50;
const ORDERS = {
  name: (a, b) => a.name.localeCompare(b.name),
  high: (a, b) => b.final_score - a.final_score,
  contact: (a, b) => (a.last_contact ?? "").localeCompare(b.last_contact ?? ""),
};

const page = await begin({ channels: ["interventions:coaches"], roles: ["coach", "admin"] });
if (page !== null) run(page);

function run({ client, ask }) {
  const names = new Names(ask, () => show());
  const nameOf = (id) => names.of(id);
  const asked = new Set(); // people who were unknown, and are not among those whose scores may be seen
  let people = new Map();
  let queue = new Map();
  let days = [];
  let isKnown = false; // read, or kept from when it was
  let needed = true;
  let meanwhile = null;
  let count = 0;
  let shownId = null;
  let daysLater = null;
  let keepLater = null;
  let peopleShown = PEOPLE_A_PART;

  // What is read

  /** Has everything be read (again): now, after the read under way, or after the next connect. */
  function readAll() {
    needed = true;
    if (meanwhile === null && client.state.status === "live") void readNow();
  }

  async function readNow() {
    while (needed && client.state.status === "live") {
      needed = false;
      meanwhile = [];
      try {
        take(await held(await overview()));
        problem("");
        for (const event of meanwhile) fold(event);
      } catch (error) {
        problem(error.message);
        needed = true;
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
    meanwhile = null;
    show();
  }

  const overview = () => ask("/sync/overview", { days: DAYS });

  /** The data read after the people's channels were subscribed: nothing comes between. */
  async function held(read) {
    const channels = read.people.slice(0, MOST_CHANNELS).map((one) => `momentum_updates:${one.user_id}`);
    const missing = channels.filter((channel) => !client.channels.includes(channel));
    if (missing.length === 0) return read;
    await client.subscribe(missing);
    return overview();
  }

  function take(read) {
    people = new Map(read.people.map((one) => [one.user_id, one]));
    queue = new Map(read.interventions.map((one) => [one.id, one]));
    days = read.days;
    isKnown = true;
    names.restore(read.names);
    void names.want([...new Set([client.userId, ...people.keys(), ...[...queue.values()].map((one) => one.user_id)])].filter(Boolean));
    keepSoon();
  }

  /** The shown data is stored, for the time without a connection. */
  function keepSoon() {
    keepLater ??= setTimeout(() => {
      keepLater = null;
      const shown = { people: [...people.values()], interventions: [...queue.values()], days, names: names.saved };
      client.cache.drop([KEPT]);
      void client.cache.get(KEPT, () => shown, { persistent: true });
    }, KEEP_AFTER_MS);
  }

  // What comes

  function fold(event) {
    const { type, userId, fields } = event;
    if (type === "momentum_score_created" || type === "momentum_score_updated") {
      const known = people.get(userId);
      if (known && fields.score_date < known.score_date) readAll(); // an earlier day, or moved there
      else people.set(userId, { ...known, user_id: userId, ...fields });
    } else if (type === "momentum_score_deleted") {
      readAll();
    } else if (type.startsWith("intervention_")) {
      const id = fields.intervention_id;
      if (type === "intervention_deleted" || !OPEN.has(fields.status)) queue.delete(id);
      else queue.set(id, { ...queue.get(id), ...fields, id });
      if (fields.status === "completed" && people.has(userId)) {
        people.set(userId, { ...people.get(userId), last_contact: fields.timestamp.slice(0, 10) });
      }
      void names.want([userId]);
      if (!people.has(userId) && !asked.has(userId)) {
        asked.add(userId);
        readAll(); // somebody new, whose scores may be seen from now on
      }
    }
    keepSoon();
  }

  /** The bars of the days are the database's count; it is asked again once in a while. */
  function daysSoon() {
    daysLater ??= setTimeout(async () => {
      daysLater = null;
      try {
        days = (await overview()).days;
        show();
      } catch (error) {
        problem(error.message);
      }
    }, DAYS_AFTER_MS);
  }

  // What is seen

  const show = onceAFrame(() => {
    if (!isKnown) return;
    const own = client.userId;
    if (own !== null && nameOf(own) !== own.slice(0, 8)) write(find("name"), `${nameOf(own)}’s`);
    const all = [...people.values()].sort((a, b) => a.final_score - b.final_score);
    const inNeed = all.filter((one) => one.momentum_state === "NeedsCare");
    write(find("care-count"), String(inNeed.length));
    fill(find("care"), ...lines(inNeed.map(person), "Nobody."));
    showPeople(all);
    fill(
      find("counts"),
      ...STATES.map((state) => {
        const number = all.filter((one) => one.momentum_state === state).length;
        return element("li", { "data-state": state }, badge(state), ` ${number}`);
      }),
    );
    const most = people.size >= MOST_PEOPLE ? `Only the ${MOST_PEOPLE} people with the lowest scores are shown. ` : "";
    write(find("limits"), most + (people.size > MOST_CHANNELS ? `Scores update live for ${MOST_CHANNELS} of them.` : ""));
    fill(find("days"), distribution(days));
    showQueue();
    openable();
    if (shownId !== null) showNow(shownId);
  });

  /** Show the people that the search finds, in the chosen order, one part at a time. */
  function showPeople(all) {
    const text = find("people-text").value.trim().toLowerCase();
    const found = all.filter((one) => nameOf(one.user_id).toLowerCase().includes(text));
    const by = ORDERS[find("people-order").value];
    if (by) found.sort((a, b) => by({ ...a, name: nameOf(a.user_id) }, { ...b, name: nameOf(b.user_id) }));
    const shown = found.slice(0, peopleShown);
    write(find("people-count"), String(found.length));
    fill(find("people"), ...lines(shown.map(person), text ? "No person with that name." : "Nobody."));
    find("people-more").hidden = shown.length === found.length;
    write(find("people-more"), `Show ${Math.min(PEOPLE_A_PART, found.length - shown.length)} more of ${found.length - shown.length}`);
  }

  function person({ user_id: id, final_score: score, momentum_state: state, last_contact: contact }) {
    return element(
      "li",
      { "data-opens": id },
      element(
        "div",
        {},
        element("button", { type: "button", class: "plain", "data-key": id, "data-person": id }, nameOf(id)),
        element("p", {}, contact ? `Last contact ${dayOf(contact)}` : "No contact yet"),
      ),
      element("span", {}, `${Number(score).toFixed(1)} `, badge(state)),
    );
  }

  /** The whole of a row opens the person; its button is for keyboards and screen readers. */
  function openable() {
    for (const row of document.querySelectorAll("[data-opens]")) row.onclick = () => showPerson(row.dataset.opens);
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
      .sort((a, b) => place(a).localeCompare(place(b)));
    write(find("queue-count"), String(rows.length));
    fill(find("queue"), ...rows.map(queued));
    openable();
  }

  const place = (one) => `${one.scheduled_date ?? "~"} ${one.scheduled_time ?? "~"} ${one.id}`;

  /** On a phone the cells are stacked, each with its label. */
  function queued({ user_id: id, intervention_type: type, trigger_reason: reason, scheduled_date: date, scheduled_time: time, status }) {
    const when = date ? [dayOf(date), time].filter(Boolean).join(", ") : "no date";
    const cells = { Type: type.replaceAll("_", " "), Reason: reason, Date: when, Status: status.replaceAll("_", " ") };
    const name = element("button", { type: "button", class: "plain", "data-key": `queue ${id}`, "data-person": id }, nameOf(id));
    return element(
      "tr",
      { "data-opens": id },
      element("th", { scope: "row" }, name),
      ...Object.entries(cells).map(([what, text]) => element("td", { "data-what": what }, text)),
    );
  }

  // One person

  async function showPerson(id) {
    shownId = id;
    find("detail-name").textContent = nameOf(id);
    fill(find("detail-trend"), element("p", { class: "soft" }, "…"));
    showNow(id);
    if (!find("detail").open) find("detail").showModal();
    const shown = await ask("/sync/history", { user_id: id, days: DAYS }).then(trend, (error) =>
      element("p", { class: "soft" }, `The history cannot be loaded: ${error.message}`),
    );
    if (shownId === id) fill(find("detail-trend"), shown); // else another was chosen meanwhile
  }

  function showNow(id) {
    const { final_score: score = null, momentum_state: state } = people.get(id) ?? {};
    fill(find("detail-gauge"), gauge(score, state), element("p", { class: "centre" }, badge(state)));
    const own = [...queue.values()].filter((one) => one.user_id === id);
    const items = own.map((one) => element("li", {}, `${one.intervention_type.replaceAll("_", " ")}: ${one.trigger_reason}`));
    fill(find("detail-interventions"), ...lines(items, "No open interventions."));
  }

  find("detail-close").addEventListener("click", () => find("detail").close());
  find("detail").addEventListener("close", () => {
    focus(shownId); // the button may be another by now
    shownId = null;
  });
  find("filters").addEventListener("input", showQueue);
  find("people-filters").addEventListener("input", () => {
    peopleShown = PEOPLE_A_PART;
    show();
  });
  find("people-filters").addEventListener("submit", (event) => event.preventDefault());
  find("people-more").addEventListener("click", () => {
    peopleShown += PEOPLE_A_PART;
    show();
  });
  find("filters").addEventListener("submit", (event) => event.preventDefault());

  client.addEventListener("resync", readAll);
  client.addEventListener("error", (error) => {
    if (error.name === "RequestFailed" && error.code === "forbidden") readAll(); // rights were lost
  });
  client.addEventListener("event", (event) => {
    count += 1;
    write(find("count"), String(count));
    meanwhile?.push(event);
    fold(event);
    if (event.type.startsWith("momentum_score_")) daysSoon();
    show();
  });
  client.addEventListener("state", ({ status }) => {
    if (status === "live" && needed) readAll();
    const kept = client.cache.peek(KEPT);
    if (!isKnown && kept) {
      take(kept.value); // as it was known when there was a connection; it is read anew with the next
      show();
    }
  });
  show();
  client.start();
}
