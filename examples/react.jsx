// A user's momentum in React: the client is a store outside of it, which is what `useSyncExternalStore` is for.

import { Client, LocalStore } from "momentum-sync";
import { useEffect, useState, useSyncExternalStore } from "react";

/** A client for as long as the component is there. `freshToken` gives a token of whoever is signed in. */
export function useMomentum(url, freshToken) {
  const [client] = useState(() => new Client(url, freshToken, { store: new LocalStore("momentum") }));
  useEffect(() => {
    client.start();
    return () => void client.close();
  }, [client]);
  return [useSyncExternalStore(client.onStateChange, client.getState), client];
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
