// What is in a checkpoint, and what each migration would change in it.

import { bytes, counted, element, searchableTable } from "./dom.js";

const STATES = {
  applied: ["applied", "soft"],
  pending: ["will run", "good"],
  missed: ["missed", "warn"],
  unknown: ["not in the folder", "warn"],
  changed: ["edited since", "warn"],
  replaced: ["replaced", "soft"],
};
const SIGNS = { added: ["+", "good"], removed: ["−", "bad"], changed: ["~", "warn"], renamed: ["→", "soft"] };

/** Return what there is to see of a plan, and of the inspection in it. */
export function look(plan, file) {
  return element("div", {}, facts(plan, file), planned(plan), foreign(plan.inspection), outline(plan.inspection));
}

function facts({ inspection }, file) {
  const history = inspection.history ?? [];
  return element(
    "dl",
    {},
    term("File", file.name),
    term("Format", `${inspection.format}, ${bytes(inspection.size)}`),
    term("Holds", held(inspection)),
    term("History", history.length ? history.join(", ") : inspection.history_error ?? "none: never migrated"),
  );
}

const term = (name, value) => [element("dt", {}, name), element("dd", {}, value)];

function held({ outline: entries, outline_truncated: isTruncated }) {
  const tensors = entries.filter((entry) => entry.kind === "tensor");
  const size = tensors.reduce((sum, entry) => sum + (entry.nbytes ?? 0), 0);
  const values = entries.length - tensors.length;
  const more = isTruncated ? ", and more than are listed" : "";
  return `${counted(tensors.length, "tensor")} of ${bytes(size)} together, ${counted(values, "value")}${more}`;
}

function planned(plan) {
  const count = plan.to_run.length;
  const title = count ? `${counted(count, "migration")} to run` : "Nothing to run: it is up to date";
  const warnings = plan.warnings.map((text) => element("p", { class: "warn" }, text));
  return element("div", {}, element("h3", { id: "plan-title" }, title), warnings, plan.steps.map(stepOf));
}

function stepOf(step) {
  const [state, style] = STATES[step.state];
  const head = [
    element("span", { class: `badge ${style}` }, step.state === "missed" && step.will_run ? "will run" : state),
    " ",
    element("code", {}, step.name),
    " ",
    element("span", { class: "step-title" }, step.title),
  ];
  if (!step.will_run) return element("p", {}, head);
  if (step.error) {
    const reason = element("p", { class: "bad" }, step.error.message ?? "It would fail.");
    return element("details", { open: true }, element("summary", {}, head, " ", badge("would fail", "bad")), reason);
  }
  if (!step.changes) return element("p", {}, head, " ", badge("not tried, as one before it fails", "warn"));
  const total = Object.values(step.counts).reduce((sum, each) => sum + each, 0);
  const summary = element("summary", {}, head, element("span", { class: "count" }, counted(total, "change")));
  const warnings = step.warnings.map((text) => element("p", { class: "warn" }, text));
  const rest = step.truncated ? element("p", { class: "hint" }, "Not all of them are listed here.") : null;
  return element("details", { open: total <= 20 }, summary, warnings, total ? changesOf(step) : null, rest);
}

const badge = (text, style) => element("span", { class: `badge ${style}` }, text);

function changesOf(step) {
  return searchableTable(
    `changes of ${step.name}`,
    ["", "before", "after"],
    step.changes,
    (change) => {
      const [sign, style] = SIGNS[change.change];
      const said = element("td", { class: `sign ${style}`, title: change.change }, sign);
      return [said, entryCell(change.before), entryCell(change.after)];
    },
    (change) => `${change.change} ${pathOf(change.before)} ${pathOf(change.after)}`,
  );
}

const pathOf = (entry) => (entry ? entry.path.join(".") : "");

function entryCell(entry) {
  if (!entry) return element("td");
  return element("td", {}, element("span", { class: "key" }, pathOf(entry)), " ", element("span", { class: "soft" }, whatIs(entry)));
}

function whatIs(entry) {
  if (entry.shape) return `${entry.dtype} [${entry.shape.join(", ")}]`;
  return entry.text ?? entry.kind;
}

function foreign(inspection) {
  const called = { ...inspection.calls, ...inspection.hidden_calls };
  if (!inspection.globals.length) return null;
  const items = inspection.globals.map((path) => ({ path, calls: called[path] ?? 0 }));
  return element(
    "details",
    {},
    element("summary", {}, "Classes and functions that it names", count(items.length)),
    element("p", { class: "hint" }, "None of them is imported or called here; they are kept as they are."),
    searchableTable(
      "classes and functions",
      ["name", "kept as objects"],
      items,
      ({ path, calls }) => [
        element("td", {}, element("span", { class: "key" }, path)),
        element("td", { class: "number" }, calls ? calls.toLocaleString("en") : "–"),
      ],
      ({ path }) => path,
    ),
  );
}

function outline(inspection) {
  const entries = inspection.outline;
  return element(
    "details",
    {},
    element("summary", {}, "All that is in it", count(entries.length)),
    searchableTable(
      "what is in the checkpoint",
      ["key", "what it is", "bytes"],
      entries,
      (entry) => [
        element("td", {}, element("span", { class: "key" }, pathOf(entry))),
        element("td", {}, whatIs(entry)),
        element("td", { class: "number" }, entry.nbytes === undefined ? "" : bytes(entry.nbytes)),
      ],
      (entry) => `${pathOf(entry)} ${entry.kind} ${whatIs(entry)}`,
    ),
  );
}

const count = (number) => element("span", { class: "count" }, number.toLocaleString("en"));
