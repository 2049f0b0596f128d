// The comparison's behaviour: its charts, their legends and choices, and the order and the filters of its tables.
"use strict";

const drawn = JSON.parse(document.getElementById("charts").textContent);
// Vega warns where a chart is empty because a reader hid every line: nothing that a reader needs to know.
const options = { actions: false, logLevel: 1, renderer: "svg", ast: true, tooltip: { disableDefaultStyle: true, theme: "page" } };

for (const section of document.querySelectorAll("section.charts")) {
  const views = [...section.querySelectorAll(".chart")].map((place) =>
    vegaEmbed(place, drawn.charts[Number(place.dataset.chart)], { ...options, config: drawn.config }).then(({ view }) => view));
  // Vega gives a group of marks a role even where it is empty and has no name, which a screen reader stumbles over.
  const tidy = () => section.querySelectorAll("[role=graphics-symbol]:not([aria-label])").forEach((group) => {
    group.removeAttribute("role");
    group.removeAttribute("aria-roledescription");
  });
  const set = (name, value) =>
    Promise.all(views.map(async (view) => (await view).signal(name, value).runAsync())).then(tidy);

  for (const choice of section.querySelectorAll("select[data-parameter]")) {
    const values = JSON.parse(choice.dataset.values);
    choice.addEventListener("change", () => set(choice.dataset.parameter, values[choice.selectedIndex]));
  }
  const entries = [...section.querySelectorAll(".legend button[data-line]")];
  const hide = () => set("hidden", entries.filter((entry) => entry.ariaPressed === "false").map((entry) => Number(entry.dataset.line)));
  for (const entry of entries) {
    entry.addEventListener("click", () => {
      entry.ariaPressed = entry.ariaPressed === "true" ? "false" : "true";
      hide();
    });
  }
  section.querySelector(".legend .all")?.addEventListener("click", () => {
    const shown = entries.some((entry) => entry.ariaPressed === "false") ? "true" : "false";
    entries.forEach((entry) => { entry.ariaPressed = shown; });
    hide();
  });
  Promise.all(views).then(tidy).then(() => { section.dataset.ready = "true"; });
}

const tables = [...document.querySelectorAll(".runs table")];
const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
const tools = document.querySelector(".tools");

function key(row, column) {
  const value = row.cells[column].dataset.value;
  return value === undefined ? null : row.cells[column].classList.contains("number") ? Number(value) : value;
}

function order(table, head, column) {
  const way = head.ariaSort === "ascending" ? "descending" : "ascending";
  [...table.tHead.rows[0].cells].forEach((other) => other.removeAttribute("aria-sort"));
  head.ariaSort = way;
  const sign = way === "ascending" ? 1 : -1;
  const compare = (one, other) => {
    const [mine, theirs] = [key(one, column), key(other, column)];
    if (mine === null || theirs === null) return (mine === null) - (theirs === null); // what is missing comes last
    return sign * (typeof mine === "number" ? mine - theirs : mine.localeCompare(theirs));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

function filter() {
  const words = tools.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...tools.querySelectorAll("select[data-column]")].filter((choice) => choice.selectedIndex > 0)
    .map((choice) => [Number(choice.dataset.column), choice.options[choice.selectedIndex].textContent]);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word)) &&
      wanted.every(([column, value]) => row.cells[column].dataset.value === value));
  }
  const left = rows.filter((row) => !row.hidden).length;
  tools.querySelector("output").textContent = `${left} of ${rows.length} runs`;
}

for (const table of tables) {
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => order(table, head, column)));
}
for (const row of rows) {
  const link = row.querySelector("a");
  row.addEventListener("click", (event) => {
    if (link && event.target.closest("a") === null && !String(getSelection())) link.click();
  });
}
tools.hidden = false;
tools.addEventListener("submit", (event) => event.preventDefault());
tools.addEventListener("input", filter);
tools.querySelector("input[type=checkbox]")?.addEventListener("change", (event) =>
  tables.forEach((table) => table.classList.toggle("folded", !event.target.checked)));
filter();
document.documentElement.dataset.ready = "true";
