// supabase-js under commands, in Node and in a page: JSON in and out, like `tests/supabase/python_driver.py`.

function bytesOf({ payload }) {
  return payload instanceof ArrayBuffer ? { payload: null, bytes: [...new Uint8Array(payload)] } : {};
}

// The names that are tracked, by key.
function namesOf(state) {
  return Object.fromEntries(Object.entries(state).map(([key, metas]) => [key, metas.map((meta) => meta.name).sort()]));
}

export function driver(createClient, transport, happened) {
  let client;
  let token;
  let opened;
  const channels = new Map();

  const commands = {
    open({ url, key, token: given, params = {}, vsn = undefined, heartbeat = undefined }) {
      token = given;
      client = createClient(url, key, {
        ...(token ? { accessToken: async () => token } : {}),
        realtime: {
          params,
          ...(transport ? { transport } : {}),
          ...(vsn ? { vsn } : {}),
          ...(heartbeat ? { heartbeatIntervalMs: heartbeat * 1000 } : {}),
        },
      });
      opened = token ? client.realtime.setAuth() : undefined;
    },
    async subscribe({ topic, bindings = [], config = {}, events = [], presence = false }) {
      await opened; // or the first join has no token; for that there are tests without a client
      const replaced = channels.get(topic);
      if (replaced) {
        // Two channels of one topic, each with its own timer for rejoins, would end each other for ever.
        channels.delete(topic);
        await replaced.unsubscribe(); // `removeChannel` would end the socket with its last channel
      }
      const channel = client.channel(topic, { config });
      for (const binding of bindings) {
        channel.on("postgres_changes", binding, (change) => happened({ change: { topic, ...change } }));
      }
      for (const event of events) {
        channel.on("broadcast", { event }, (message) => happened({ broadcast: { topic, ...message, ...bytesOf(message) } }));
      }
      if (presence) {
        channel.on("presence", { event: "sync" }, () => happened({ presence: { topic, state: namesOf(channel.presenceState()) } }));
      }
      channel.on("system", {}, (system) => happened({ system: { topic, ...system } }));
      channels.set(topic, channel);
      channel.subscribe((status, error) => {
        if (channels.get(topic) === channel) {
          happened({ status, topic, error: error ? String(error.message ?? error) : null });
        }
      });
    },
    async send({ topic, event, payload, bytes }) {
      const content = bytes ? new Uint8Array(bytes).buffer : payload;
      happened({ sent: event, answer: await channels.get(topic).send({ type: "broadcast", event, payload: content }) });
    },
    async http_send({ topic, event, payload }) {
      await channels.get(topic).httpSend(event, payload);
      happened({ sent: event });
    },
    async track({ topic, payload }) {
      await channels.get(topic).track(payload);
    },
    async untrack({ topic }) {
      await channels.get(topic).untrack();
    },
    async unsubscribe({ topic }) {
      happened({ unsubscribed: await client.removeChannel(channels.get(topic)), topic });
    },
    async token({ token: given }) {
      token = given;
      await client.realtime.setAuth();
      happened({ renewed: true });
    },
  };

  return async (command) => {
    try {
      await commands[command.do](command);
    } catch (error) {
      happened({ failed: String(error.stack ?? error) });
    }
  };
}
