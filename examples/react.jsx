// A user's momentum in React: the client is an external store, which is what `useSyncExternalStore` subscribes to.

import { Client, LocalStore } from "momentum-sync";
import { useEffect, useState, useSyncExternalStore } from "react";

/**
 * Connects while the component is mounted. `freshToken` returns a token of the signed-in user; define it outside of the
 * component or with `useCallback`, because another function is another connection.
 */
export function useMomentum(url, freshToken) {
  // A client cannot be started again, and React may run an effect twice: each run has a client of its own. The first
  // client is never started; its state is the empty one that is rendered until the effect runs.
  const [client, setClient] = useState(() => new Client(url, freshToken));
  useEffect(() => {
    const running = new Client(url, freshToken, { store: new LocalStore("momentum") });
    running.start();
    setClient(running);
    return () => void running.close();
  }, [url, freshToken]);
  return [useSyncExternalStore(client.onStateChange, client.getState, client.getState), client];
}

export function Momentum({ url, freshToken }) {
  const [{ status, momentum, notifications }, client] = useMomentum(url, freshToken);
  return (
    <section aria-busy={status !== "live"}>
      <p>{momentum?.has_data ? `${momentum.final_score} ${momentum.momentum_state}` : "No data yet"}</p>
      <ul>
        {notifications.map(({ id, title }) => (
          <li key={id}>
            {title} <button onClick={() => client.markNotificationRead(id)}>Read</button>
          </li>
        ))}
      </ul>
    </section>
  );
}
