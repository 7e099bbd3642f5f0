// Elements are made of values, never of markup: what a checkpoint holds is only ever text here.

/** Return a new element: its attributes, then its children, which are elements or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return the element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** Put these in the place of what an element holds. */
export function show(id, ...children) {
  byId(id).replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** Return a number of bytes as a person reads it. */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = count;
  let unit = -1;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Return a count and its noun: "1 key", "2 keys". */
export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const SHOWN_ROWS = 200;

/**
 * Return a table of which only the first rows are there, with a field to search all of them.
 *
 * @param {string} label what is in it, for those who do not see it
 * @param {string[]} headings of the columns
 * @param {any[]} items one for each row
 * @param {(item: any) => Node[]} cellsOf the cells of a row
 * @param {(item: any) => string} textOf what is searched
 */
export function searchableTable(label, headings, items, cellsOf, textOf) {
  const body = element("tbody");
  const more = element("p", { class: "hint", role: "status" });
  const fill = (wanted) => {
    const found = wanted ? items.filter((item) => textOf(item).toLowerCase().includes(wanted)) : items;
    body.replaceChildren(...found.slice(0, SHOWN_ROWS).map((item) => element("tr", {}, cellsOf(item))));
    const left = found.length - SHOWN_ROWS;
    more.textContent = left > 0 ? `and ${left.toLocaleString("en")} more: search to find them` : "";
  };
  fill("");
  const search = element("input", {
    type: "search",
    placeholder: `Search ${counted(items.length, "line")}`,
    "aria-label": `Search ${label}`,
    oninput: () => fill(search.value.trim().toLowerCase()),
  });
  const head = element("thead", {}, element("tr", {}, headings.map((text) => element("th", { scope: "col" }, text))));
  const table = element("table", { "aria-label": label }, head, body);
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
  return element("div", {}, items.length > 10 ? search : null, scroll, more);
}
