// What happens from now on, told by the server, and whether it is told.

import { getNow } from "./api.js";
import { byId, setText } from "./dom.js";

const AGAIN_MS = 2000;
const NAMES = ["jobs", "gone", "workers", "pictures", "failures"];

let source = null;
let again = 0;

function say(state, text) {
  byId("live").dataset.state = state;
  setText(byId("live-text"), text);
}

function alarm(text) {
  byId("alert").hidden = !text;
  setText(byId("alert"), text ?? "");
}

// begin: called whenever something may have been missed. tell: with a message's name and values.
export function connect(begin, tell) {
  clearTimeout(again);
  source?.close();
  const own = new EventSource("/api/events");
  source = own;
  own.addEventListener("ledger", (event) => {
    const { error } = JSON.parse(event.data);
    if (error) {
      say("away", "ledger away");
      alarm(`The ledger does not answer: ${error}. What is below is of before; the page goes on by itself.`);
    } else {
      say("live", "live");
      alarm(null);
      begin();
    }
  });
  for (const name of NAMES) {
    own.addEventListener(name, (event) => tell(name, JSON.parse(event.data)));
  }
  own.addEventListener("error", () => {
    if (source !== own) return;
    own.close();
    say("away", "not connected");
    // An event stream does not say why it is refused; another question does.
    getNow().then(() => "the connection was lost", (error) => error.message)
      .then((why) => { if (source === own) alarm(`Nothing new is shown: ${why}. Trying again.`); });
    again = setTimeout(() => connect(begin, tell), AGAIN_MS);
  });
}

// A hidden page holds no connection: a browser has only six for one server.
export function rest() {
  clearTimeout(again);
  source?.close();
  source = null;
}
