// The JavaScript SDK by the test vectors in spec/vectors, which the Python SDK's tests read, too.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as errors from "../src/errors.js";
import { Protocol, pause, verdict } from "../src/protocol.js";
import { UserState } from "../src/state.js";

const cases = (name) => JSON.parse(readFileSync(new URL(`../../../spec/vectors/${name}.json`, import.meta.url), "utf8")).cases;

/** Return the value without null fields, which may be absent. */
function bare(value) {
  if (Array.isArray(value)) return value.map(bare);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, inner]) => inner !== null && inner !== undefined)
      .map(([name, inner]) => [name, bare(inner)]),
  );
}

for (const { name, user_id: userId, snapshot, steps, state: expected, unsure } of cases("state")) {
  test(`state: ${name}`, () => {
    const state = new UserState(userId);
    state.begin(snapshot);
    for (const step of steps) {
      if (step.event) state.fold(step.event);
      else assert.equal(state.readAgain(step.read), step.taken);
    }
    assert.deepEqual(bare(state.saved()), bare({ ...expected, unsure }));
    assert.equal(state.unsure, unsure);
    const again = new UserState(userId);
    again.begin(JSON.parse(JSON.stringify(state.saved())));
    assert.deepEqual(bare(again.saved()), bare(state.saved()));
  });
}

function described({ kind, id, reason, keys }) {
  return { kind, ...(kind !== "answer" && { id }), ...(kind === "resync" && { reason }), ...(keys && { keys }) };
}

const seconds = (at) => at * 1000;

function take(following, step) {
  if ("connect" in step) assert.equal(following.connecting(), step.connect);
  else if ("opened" in step) following.opened(seconds(step.opened), seconds(step.opened));
  else if ("channels" in step) assert.deepEqual(following.channels, step.channels);
  else if ("lost" in step) following.lost(seconds(step.lost));
  else if ("ended" in step) following.ended(seconds(step.ended));
  else if ("frozen" in step) {
    assert.equal(following.frozen(seconds(step.frozen.at), seconds(step.frozen.patience)), step.is);
  } else if ("receive" in step) {
    const text = typeof step.receive === "string" ? step.receive : JSON.stringify(step.receive);
    if ("error" in step) assert.throws(() => following.receive(text, seconds(step.at), seconds(step.at)), errors[step.error]);
    else assert.deepEqual(following.receive(text, seconds(step.at), seconds(step.at)).map(described), step.outputs);
  } else {
    const { status, lastEventId, since } = following;
    assert.deepEqual(
      { status, last_event_id: lastEventId, since: since === null ? null : since / 1000 },
      step.expect,
    );
  }
}

for (const { name, saved, steps } of cases("following")) {
  test(`following: ${name}`, () => {
    const following = new Protocol(null);
    if (saved) following.restore(saved.user_id, saved.last_event_id, seconds(saved.since));
    for (const step of steps) take(following, step);
  });
}

for (const { code, verdict: expected } of cases("close")) {
  test(`close: ${code}`, () => assert.equal(verdict(code), expected));
}

for (const { failures, chance, seconds: expected } of cases("backoff")) {
  test(`backoff: ${failures} failures, ${chance}`, () => assert.equal(pause(failures, chance), seconds(expected)));
}
