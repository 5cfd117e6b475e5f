// supabase-js under commands, in Node and in a page: JSON in and out, like `tests/supabase/python_driver.py`.

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
    async subscribe({ topic, bindings = [], config = {} }) {
      await opened; // or the first join has no token; for that there are tests without a client
      const channel = client.channel(topic, { config });
      for (const binding of bindings) {
        channel.on("postgres_changes", binding, (change) => happened({ change: { topic, ...change } }));
      }
      channel.on("system", {}, (system) => happened({ system: { topic, ...system } }));
      channels.set(topic, channel);
      channel.subscribe((status, error) => happened({ status, topic, error: error ? String(error.message ?? error) : null }));
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
