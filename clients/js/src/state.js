// A user's state: a snapshot, folded with the events after it. The rules are those of spec/vectors/state.json.

/** @import { Momentum, Intervention, Notification, Saved, Fields } from "./messages.js" */

const OPEN = new Set(["scheduled", "in_progress"]);
const UNREAD = new Set(["pending", "sent", "delivered"]);
const MOST_NOTIFICATIONS = 1_000;
const LATE = "~"; // behind every date

// Types of the fields of the app's events.
const TEXT = ["string"];
const TEXT_OR_NULL = ["string", "null"];
const SCORE = {
  timestamp: TEXT,
  score_date: TEXT,
  momentum_state: TEXT,
  final_score: ["number"],
  previous_state: TEXT_OR_NULL,
  state_changed: ["boolean"],
};
const INTERVENTION = {
  timestamp: TEXT,
  intervention_id: TEXT,
  intervention_type: TEXT,
  trigger_reason: TEXT,
  status: TEXT,
  previous_status: TEXT_OR_NULL,
  status_changed: ["boolean"],
  scheduled_date: TEXT_OR_NULL,
};
const NOTIFICATION = {
  timestamp: TEXT,
  notification_id: TEXT,
  notification_type: TEXT,
  title: TEXT,
  message: TEXT,
  action_type: TEXT_OR_NULL,
  action_data: ["object", "string", "number", "boolean", "null"],
  status: TEXT,
};

const REMOVED = { timestamp: TEXT, notification_id: TEXT };
/** Values for fields that were omitted because they are too large. */
const LEFT_OUT = { title: "", message: "", trigger_reason: "", action_data: null, previous_status: null };

/**
 * One user's momentum, open interventions, and unread notifications.
 *
 * `unsure` is set where events do not determine the latest score: it was deleted, or moved to another day. The momentum
 * must be read again then.
 */
export class UserState {
  /** @type {Map<string, Intervention>} */
  #interventions = new Map();
  /** @type {Map<string, Notification>} */
  #notifications = new Map();
  /**
   * The last event of each day since the last read. They reveal a read that is older.
   * @type {Map<string, Fields>}
   */
  #days = new Map();
  #doubtful = "";

  /** @param {string} userId */
  constructor(userId) {
    this.userId = userId;
    /** @type {Momentum | null} */
    this.momentum = null;
    this.unsure = false;
  }

  /** Interventions that are scheduled or in progress, by date; those without one last. */
  get interventions() {
    return [...this.#interventions.values()].sort(
      (a, b) =>
        compare(a.scheduled_date || LATE, b.scheduled_date || LATE) ||
        compare(a.created_at || LATE, b.created_at || LATE) ||
        compare(a.id, b.id),
    );
  }

  /** Unread notifications, newest first. */
  get notifications() {
    return [...this.#notifications.values()].sort(
      (a, b) => compare(b.created_at || "", a.created_at || "") || compare(a.id, b.id),
    );
  }

  /**
   * Take over a snapshot, or a stored state.
   * @param {{momentum: Momentum | null, interventions: Intervention[] | {interventions: Intervention[]} | null,
   *   notifications: Notification[], unsure?: boolean}} snapshot
   */
  begin({ momentum, interventions, notifications, unsure = false }) {
    const open = Array.isArray(interventions) ? interventions : (interventions?.interventions ?? []);
    this.momentum = momentum;
    this.#interventions = new Map(open.map((one) => [one.id, one]));
    this.#notifications = new Map(notifications.map((one) => [one.id, one]));
    this.#days.clear();
    this.#doubtful = "";
    this.unsure = unsure;
  }

  /**
   * Return the state to store.
   * @returns {Saved}
   */
  saved() {
    const { momentum, interventions, notifications, unsure } = this;
    return { momentum, interventions, notifications, unsure };
  }

  /**
   * Apply the next event. Returns whether anything changed; events of other users change nothing.
   * @param {Fields} event
   * @returns {boolean}
   */
  fold(event) {
    if (event.user_id !== this.userId) return false;
    if (Array.isArray(event.omitted)) event = { ...LEFT_OUT, ...event };
    switch (event.event_type) {
      case "momentum_score_created":
      case "momentum_score_updated":
        if (event.omitted?.includes("momentum_state")) this.unsure = true; // too large for an event: it must be read
        return fits(event, SCORE) && this.#score(event);
      case "momentum_score_deleted":
        return fits(event, SCORE) && this.#scoreDeleted(event);
      case "intervention_created":
      case "intervention_updated":
      case "intervention_deleted":
        return fits(event, INTERVENTION) && this.#intervention(event);
      case "push_notification":
        return fits(event, NOTIFICATION) && this.#notification(event);
      case "notification_removed":
        return fits(event, REMOVED) && this.#notifications.delete(event.notification_id);
      default:
        return false;
    }
  }

  /**
   * Remove a notification.
   * @param {string} notificationId
   */
  forgetNotification(notificationId) {
    this.#notifications.delete(notificationId);
  }

  /**
   * Take over a momentum that was read after the last event; false if it may be older than that event.
   *
   * An event may arrive before its change is visible to readers. Where a later day may have been moved away, the same
   * momentum must be read twice.
   * @param {Momentum} momentum
   */
  readAgain(momentum) {
    if (this.#isOlder(momentum)) return false;
    this.momentum = momentum;
    this.#days.clear();
    this.#doubtful = "";
    this.unsure = false;
    return true;
  }

  /** @param {Momentum} momentum */
  #isOlder(momentum) {
    const day = momentum.score_date ?? "";
    const known = this.#days.get(day);
    if (known !== undefined) {
      const same = momentum.momentum_state === known.momentum_state && momentum.final_score === known.final_score;
      return !same || known.event_type === "momentum_score_deleted";
    }
    /** @param {[string, Fields]} entry */
    const later = ([date, one]) => date > day && one.event_type !== "momentum_score_deleted";
    if (![...this.#days].some(later)) return false;
    const before = this.#doubtful;
    this.#doubtful = JSON.stringify({ ...momentum, timestamp: null });
    return !this.unsure || before !== this.#doubtful;
  }

  /** @param {Fields} event */
  #score(event) {
    this.#days.set(event.score_date, event);
    const now = this.momentum;
    if (now?.has_data && now.score_date != null && event.score_date < now.score_date) {
      this.unsure = true; // a change of an earlier day, or the latest score was moved there
      return false;
    }
    this.momentum = {
      user_id: this.userId,
      has_data: true,
      score_date: event.score_date,
      momentum_state: event.momentum_state,
      final_score: event.final_score,
      last_updated: event.timestamp,
    };
    return true;
  }

  /** @param {Fields} event */
  #scoreDeleted(event) {
    this.#days.set(event.score_date, event);
    if (this.momentum?.score_date !== event.score_date) return false;
    this.momentum = null;
    this.unsure = true;
    return true;
  }

  /** @param {Fields} event */
  #intervention(event) {
    const id = event.intervention_id;
    if (event.event_type === "intervention_deleted" || !OPEN.has(event.status)) return this.#interventions.delete(id);
    const known = this.#interventions.get(id);
    const created = event.event_type === "intervention_created" ? event.timestamp : null; // of a server before 0.1.0
    this.#interventions.set(id, {
      id,
      intervention_type: event.intervention_type,
      status: event.status,
      scheduled_date: event.scheduled_date,
      trigger_reason: event.trigger_reason,
      created_at: event.created_at ?? (known ? (known.created_at ?? null) : created),
    });
    return true;
  }

  /** @param {Fields} event */
  #notification(event) {
    const id = event.notification_id;
    if (!UNREAD.has(event.status)) return this.#notifications.delete(id);
    const known = this.#notifications.get(id);
    this.#notifications.set(id, {
      id,
      notification_type: event.notification_type,
      title: event.title,
      message: event.message,
      action_type: event.action_type,
      action_data: event.action_data,
      status: event.status,
      created_at: event.created_at ?? (known ? (known.created_at ?? null) : event.timestamp),
      opened_at: null,
    });
    const oldest = this.#notifications.size > MOST_NOTIFICATIONS ? this.notifications.at(-1) : undefined;
    if (oldest) this.#notifications.delete(oldest.id);
    return true;
  }
}

/**
 * Return whether an event has the fields of its type: an operator's own event may not.
 * @param {Fields} event
 * @param {Record<string, string[]>} types
 */
function fits(event, types) {
  return Object.entries(types).every(([name, wanted]) => {
    const value = event[name];
    return wanted.includes(value === null ? "null" : typeof value);
  });
}

/**
 * @param {string} a
 * @param {string} b
 */
function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
