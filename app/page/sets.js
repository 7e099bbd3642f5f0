// The migrations that the service has.

import { request } from "./api.js";
import { byId, counted, element, show } from "./dom.js";

/** Show the sets, and let one be chosen where there are several. */
export async function showSets() {
  const { sets } = await request("migrations");
  const choice = byId("set");
  const chosen = choice.value;
  choice.replaceChildren(...sets.map(({ set }) => element("option", { value: set, selected: set === chosen }, set)));
  byId("set-choice").hidden = sets.length < 2;
  show("sets", sets.map((each) => setOf(each, sets.length > 1)));
}

/** Return the name of the set that is chosen. */
export const chosenSet = () => byId("set").value || "default";

function setOf({ set, set_digest: digest, migrations }, isOneOfMany) {
  const rows = migrations.map((migration) =>
    element(
      "tr",
      {},
      element("td", {}, element("code", {}, migration.name)),
      element("td", {}, migration.title || "–"),
      element("td", {}, migration.declared ? "operations" : "function"),
      element("td", {}, element("code", { title: migration.digest }, short(migration.digest))),
    ),
  );
  const headings = ["name", "what it does", "form", "digest"].map((text) => element("th", { scope: "col" }, text));
  const table = element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `migrations of ${set}` },
    element("table", {}, element("thead", {}, element("tr", {}, headings)), element("tbody", {}, rows)),
  );
  const summary = [`${isOneOfMany ? `Set ${set}: ` : ""}${counted(migrations.length, "migration")} `, element("code", { title: digest, class: "soft" }, short(digest))];
  return element("details", { open: !isOneOfMany || set === "default" }, element("summary", {}, summary), table);
}

const short = (digest) => `${digest.slice(0, 12)}…`;
