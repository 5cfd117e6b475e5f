// The client's side of the protocol, without its socket: position, received messages, and their meaning.
// The rules are those of spec/vectors/following.json, close.json and backoff.json.

import { Gap, NotUnderstood } from "./errors.js";
import { UserState } from "./state.js";

/** @import { Momentum, Intervention, Notification, Saved, Fields } from "./messages.js" */

/** @typedef {"offline" | "catching_up" | "live" | "ended"} Status */
/** @typedef {"come_back" | "fresh_token" | "later" | "end"} Verdict */

/**
 * A committed change, on the channel that delivered it. `fields` are its own; `type`, `userId` and `timestamp` are
 * among them, and empty where an operator published without them.
 * @typedef {object} Event
 * @property {"event"} kind
 * @property {string} id
 * @property {string} channel
 * @property {string} type
 * @property {string | null} userId
 * @property {string} timestamp
 * @property {Fields} fields
 */

/**
 * The stream starts afresh here: events before it may be missing, and the state was read again. `reason` is null at the
 * first start, else why the stream could not continue: `expired`, `history_changed`, `unknown_id` or `gap`.
 * @typedef {object} Resync
 * @property {"resync"} kind
 * @property {string} id
 * @property {string | null} reason
 * @property {Saved} state
 */

/**
 * @typedef {object} Invalidated
 * @property {"invalidated"} kind
 * @property {string} id
 * @property {string[]} keys
 */

/**
 * An answer of the server to a message, or its notice that the token expires.
 * @typedef {object} Answer
 * @property {"answer"} kind
 * @property {Record<string, any> & {type: string}} message
 */

/** @typedef {Event | Resync | Invalidated | Answer} Output */

/**
 * The present data of the user, and how current they are. Where `status` is not `live`, everything was current at
 * `since`, milliseconds since 1970 (null: never).
 * @typedef {object} State
 * @property {Status} status
 * @property {number | null} since
 * @property {Momentum | null} momentum
 * @property {Intervention[]} interventions
 * @property {Notification[]} notifications
 */

/** The user of a connection without one, such as that of `service_role`. */
const NOBODY = "";
const LONGEST_PAUSE_MS = 20_000;
const SHORTEST_PAUSE_MS = 500;
const LATE_MS = 10_000;

/** @type {Record<number, Verdict>} */
const VERDICTS = {
  1009: "end",
  4400: "end",
  4403: "end",
  4410: "end",
  4401: "fresh_token",
  4413: "later",
  400: "end",
  403: "end",
  422: "end",
  401: "fresh_token",
  429: "later",
};

/**
 * Return the reaction to a close code, or to an HTTP status of a failed handshake.
 * @param {number} code
 * @returns {Verdict}
 */
export function verdict(code) {
  return VERDICTS[code] ?? "come_back";
}

/**
 * Return the milliseconds to wait after a number of failures in a row: full jitter, at most 20 s.
 * @param {number} failures
 * @param {number} chance between 0 and 1
 */
export function pause(failures, chance) {
  return Math.min(LONGEST_PAUSE_MS, SHORTEST_PAUSE_MS * 2 ** Math.min(Math.max(failures, 1) - 1, 10)) * chance;
}

/**
 * The state machine of a client, as ARCHITECTURE.md draws it.
 * @type {Record<Status, Status[]>}
 */
const TRANSITIONS = {
  offline: ["catching_up", "live", "ended"],
  catching_up: ["live", "offline", "ended"],
  live: ["catching_up", "offline", "ended"],
  ended: [],
};

/**
 * One client's position in the stream. Times are milliseconds: `now` since 1970, `at` on a monotonic clock.
 *
 * `lastEventId` is the id of the last received event; `position` is how far the server's stream has come for this
 * client, with no event for it in between: a reconnect resumes from there. `since` is when the data were last known to
 * be current, while the status is not live. `userId` is null until known.
 */
export class Protocol {
  #heardAt = 0;
  #steady = 0;
  #toCome = 0;
  #came = false;
  /** @type {string | null} */
  #broughtId = null;
  /** @type {string | null} */
  #reason = null;

  /** @param {string | null} userId */
  constructor(userId) {
    this.userId = userId;
    this.state = new UserState(userId ?? "");
    /** @type {string | null} */
    this.lastEventId = null;
    /** @type {string | null} */
    this.position = null;
    /** @type {Status} */
    this.status = "offline";
    /** @type {number | null} */
    this.since = null;
    /** @type {string[]} */
    this.channels = [];
    this.lagMs = 0;
  }

  /** @param {Status} status */
  #enter(status) {
    if (status !== this.status && !TRANSITIONS[this.status].includes(status)) {
      throw new Error(`a defect: ${this.status} -> ${status}`);
    }
    this.status = status;
  }

  /**
   * Continue from a stored position.
   * @param {string} userId
   * @param {string | null} lastEventId
   * @param {number | null} since
   */
  restore(userId, lastEventId, since) {
    this.userId = this.state.userId = userId;
    this.lastEventId = this.position = lastEventId;
    this.since = since;
  }

  /** Begin connecting. Returns the id to resume from. */
  connecting() {
    this.#broughtId = this.position;
    return this.position;
  }

  /**
   * Note that the socket is open, and the subscription is not confirmed yet.
   * @param {number} now
   * @param {number} at
   */
  opened(now, at) {
    this.#heardAt = now;
    this.#steady = at;
  }

  /**
   * Note that the socket is closed.
   * @param {number} now
   */
  lost(now) {
    if (!this.online) return;
    if (this.status === "live" || this.since === null) this.since = Math.min(this.#heardAt, now);
    this.#enter("offline");
  }

  /**
   * Note that the client does not reconnect any more.
   * @param {number} now
   */
  ended(now) {
    this.lost(now);
    this.#enter("ended");
  }

  /**
   * Return whether nothing arrived for longer than `patience` milliseconds.
   * @param {number} at
   * @param {number} patience
   */
  frozen(at, patience) {
    return at - this.#steady > patience;
  }

  /**
   * Drop the position; the next connection begins with a snapshot.
   * @param {string} reason
   */
  forget(reason) {
    this.lastEventId = this.position = null;
    this.#reason = reason;
  }

  /** Whether there is a subscription. */
  get online() {
    return this.status === "live" || this.status === "catching_up";
  }

  /**
   * Return the present data, without notifications that the user has read.
   * @param {{has(id: string): boolean}} without
   * @returns {State}
   */
  known(without) {
    const { momentum, interventions, notifications } = this.state;
    const unread = notifications.filter((one) => !without.has(one.id));
    return { status: this.status, since: this.since, momentum, interventions, notifications: unread };
  }

  /**
   * Handle a message. Throws Gap if an event is missing before it, NotUnderstood if it is not a message.
   * @param {string} text
   * @param {number} now
   * @param {number} at
   * @returns {Output[]}
   */
  receive(text, now, at) {
    const message = parse(text);
    this.#heardAt = now;
    this.#steady = at;
    switch (message.type) {
      case "subscription_confirmed":
        return this.#confirmed(message, now);
      case "initial_state":
        return this.#begin(message);
      case "realtime_event":
        return this.#event(message.event);
      case "cache_invalidation":
        this.#follow(message.id, message.previous_id);
        return [{ kind: "invalidated", id: message.id, keys: message.cache_keys }];
      case "heartbeat":
        this.#heartbeat(message);
        return [];
      case "authenticated":
      case "error":
        this.channels = this.channels.filter((channel) => !message.refused?.includes(channel));
        return [{ kind: "answer", message }];
      default: // a newer server may send what is not known here
        return ANSWERS.has(message.type) ? [{ kind: "answer", message }] : [];
    }
  }

  /**
   * @param {any} message
   * @param {number} now
   * @returns {Output[]}
   */
  #confirmed(message, now) {
    this.channels = message.channels;
    if (!this.online) {
      const userId = message.user_id ?? NOBODY;
      if (this.userId === null) this.userId = this.state.userId = userId;
      if (userId !== this.userId) {
        this.userId = userId;
        this.state = new UserState(userId);
        this.forget("another_user");
        throw new Gap("The token belongs to another user than the stored state.");
      }
      this.#toCome = message.resumed ? message.replayed : 0;
      this.since ??= now;
      this.#enter("catching_up");
      if (message.resumed) {
        this.lastEventId = this.#broughtId; // the next event follows the position that was sent
        this.#caughtUp();
      } else if (this.#broughtId !== null) this.#reason = message.reason ?? "unknown_id";
    }
    return [{ kind: "answer", message }];
  }

  /**
   * @param {any} message
   * @returns {Output[]}
   */
  #begin(message) {
    this.state.begin(message);
    this.lastEventId = this.position = message.last_event_id;
    const reason = this.#reason;
    this.#reason = null;
    this.#toCome = 0;
    this.#caughtUp();
    return [{ kind: "resync", id: message.last_event_id, reason, state: this.state.saved() }];
  }

  /**
   * @param {any} body
   * @returns {Output[]}
   */
  #event({ id, previous_id: previous, channel, ...fields }) {
    this.#follow(id, previous);
    this.state.fold(fields);
    const { event_type: type = "", user_id: userId = null, timestamp = "" } = fields;
    return [{ kind: "event", id, channel, type, userId, timestamp, fields }];
  }

  /**
   * @param {string} id
   * @param {string} previous
   */
  #follow(id, previous) {
    if (previous !== this.lastEventId) {
      this.forget("gap");
      throw new Gap(`The event ${id} follows ${previous}, which did not come.`);
    }
    this.lastEventId = this.position = id;
    this.#came = true;
    if (this.#toCome > 0) {
      this.#toCome -= 1;
      this.#caughtUp();
    }
  }

  /** @param {any} message */
  #heartbeat(message) {
    this.lagMs = message.lag_ms;
    if (message.last_event_id !== this.lastEventId) {
      this.forget("gap");
      throw new Gap(`The server has sent ${message.last_event_id}, which did not come.`);
    }
    this.position = message.position ?? message.last_event_id;
    if (message.lag_ms > LATE_MS) {
      this.since ??= this.#heardAt - message.lag_ms;
      this.#enter("catching_up");
    } else if (this.#toCome === 0 || !this.#came) {
      this.#toCome = 0; // some of the replayed events may be for others
      this.#caughtUp();
    }
    this.#came = false;
  }

  #caughtUp() {
    if (this.#toCome > 0) return;
    this.#enter("live");
    this.since = null;
  }
}

const ANSWERS = new Set([
  "cache_invalidation_confirmed",
  "momentum_state_update",
  "notification_marked_read",
  "pong",
  "token_expiring",
]);

/**
 * The fields that each type of message must have.
 * @type {Record<string, (message: any) => boolean>}
 */
const READABLE = {
  subscription_confirmed: (message) => Array.isArray(message.channels),
  initial_state: (message) => Array.isArray(message.notifications) && typeof message.last_event_id === "string",
  realtime_event: ({ event }) =>
    [event?.id, event?.previous_id, event?.channel].every((one) => typeof one === "string"),
  cache_invalidation: (message) => Array.isArray(message.cache_keys) && typeof message.id === "string",
  heartbeat: (message) => typeof message.last_event_id === "string" && typeof message.lag_ms === "number",
};

/**
 * @param {string} text
 * @returns {any}
 */
function parse(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch (error) {
    throw new NotUnderstood("The server sent what is no JSON.", { cause: error });
  }
  const type = message?.type;
  if (typeof type !== "string" || READABLE[type]?.(message) === false) {
    throw new NotUnderstood(`The server sent what is no message: ${type}.`);
  }
  return message;
}
