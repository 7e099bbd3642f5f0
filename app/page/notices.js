// What is said of something that went wrong.

import { Cancelled, Problem, forgetToken, hasToken } from "./api.js";
import { byId, element, show } from "./dom.js";

/** Say on the page why something was not done. */
export function explain(error) {
  if (error instanceof Cancelled) {
    show("result", element("p", { class: "soft" }, "Cancelled. Nothing has changed."));
    return;
  }
  if (error instanceof Problem && error.status === 401 && !askForToken()) return;
  const id = error.requestId ? element("p", { class: "hint" }, "request ", element("code", {}, error.requestId)) : null;
  complain(sentence(error.message), id);
}

/** Say a sentence that a person should act on. */
export function complain(text, more = null) {
  show("problem", element("div", {}, element("p", { class: "bad" }, text), more));
}

/** Show the field for a token, and return whether there was one, which is not good then. */
function askForToken() {
  const wasThere = hasToken();
  forgetToken();
  byId("access").hidden = false;
  byId("token").focus();
  return wasThere;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
