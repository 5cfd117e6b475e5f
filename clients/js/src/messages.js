// Types of the protocol's data that programs see. On the wire they have the same form.

/**
 * A user's latest score. Absent and null fields are unknown: an event carries no count and no breakdown.
 * @typedef {object} Momentum
 * @property {string} user_id
 * @property {boolean} has_data
 * @property {string | null} [score_date]
 * @property {string | null} [momentum_state] `Rising`, `Steady` or `NeedsCare`
 * @property {number | null} [final_score]
 * @property {number | null} [events_count]
 * @property {Record<string, unknown> | null} [breakdown]
 * @property {string | null} [last_updated]
 * @property {string | null} [timestamp]
 * @property {string | null} [message]
 */

/**
 * An intervention that is scheduled or in progress.
 * @typedef {object} Intervention
 * @property {string} id
 * @property {string} intervention_type
 * @property {string} status
 * @property {string | null} scheduled_date
 * @property {string} trigger_reason
 * @property {string | null} [created_at]
 */

/**
 * A notification that has not been read.
 * @typedef {object} Notification
 * @property {string} id
 * @property {string} notification_type
 * @property {string} title
 * @property {string} message
 * @property {string | null} action_type
 * @property {unknown} action_data
 * @property {string} status
 * @property {string | null} [created_at]
 * @property {string | null} [opened_at]
 */

/**
 * A user's state, as it is stored.
 * @typedef {object} Saved
 * @property {Momentum | null} momentum
 * @property {Intervention[]} interventions
 * @property {Notification[]} notifications
 * @property {boolean} [unsure] the momentum must be read again
 */

/**
 * The fields of a published event.
 * @typedef {Record<string, any> & {event_type: string, user_id?: string, timestamp?: string}} Fields
 */

export {};
