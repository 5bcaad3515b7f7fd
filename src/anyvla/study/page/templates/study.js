"use strict";
const all = (what, inside = document) => [...inside.querySelectorAll(what)];
const one = (what, inside = document) => inside.querySelector(what);

// Values under the pointer, or after a tap.
const tip = one("#tip");
function showTip(event) {
  const of = event.target.closest("[data-tip]");
  tip.hidden = !of;
  if (!of) return;
  tip.textContent = of.dataset.tip;
  const box = of.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const top = box.top - tip.offsetHeight - 6 < 0 ? box.bottom + 6 : box.top - tip.offsetHeight - 6;
  tip.style.left = left + scrollX + "px";
  tip.style.top = top + scrollY + "px";
}
document.addEventListener("pointerover", showTip);
document.addEventListener("click", showTip);

// Legends: a click hides a line, the pointer lights it.
for (const button of all(".legend button")) {
  const svg = button.closest("figure").querySelector("svg");
  const series = svg.querySelector(`[data-series="${button.dataset.series}"]`);
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", pressed);
    if (series) series.style.display = pressed ? "" : "none";
  });
  for (const [event, lit] of [["pointerenter", true], ["pointerleave", false]]) {
    button.addEventListener(event, () => { svg.classList.toggle("one", lit); if (series) series.classList.toggle("lit", lit); });
  }
}

// One of several figures, and one of several tables.
for (const select of all(".figures select")) {
  const figures = all("figure", select.closest(".figures"));
  select.addEventListener("change", () => {
    for (const figure of figures) figure.hidden = figure.dataset.choice !== select.value;
  });
}
const tables = all(".table"), chooseTable = one("#choose-table");
function showTable() {
  if (!chooseTable) return;
  for (const table of tables) table.hidden = table.dataset.table !== chooseTable.value;
}

// Filters: of each axis, no chosen label means all of them.
const MOST = 50; // rows of a table at first
const fieldsets = all("fieldset"), cells = all(".cell");
const labelsOf = new Map(all("[data-labels]").map((row) => [row, row.dataset.labels.split(",")]));
function filter() {
  let said = "";
  const chosen = fieldsets.map((of) => new Set(all('[aria-pressed="true"]', of).map((button) => button.dataset.label)));
  const fits = (row) => chosen.every((wanted, axis) => !wanted.size || wanted.has(labelsOf.get(row)[axis]));
  for (const table of tables) {
    const fitting = all(".scores tbody tr", table).filter((row) => { row.hidden = true; return fits(row); });
    const most = table.classList.contains("whole") ? Infinity : MOST;
    for (const row of fitting.slice(0, most)) row.hidden = false;
    one(".more", table).hidden = fitting.length <= most;
    if (!table.hidden) said = `${fitting.length} of ${all(".scores tbody tr", table).length} settings, `;
  }
  let shown = 0;
  for (const cell of cells) { cell.hidden = !fits(cell); shown += !cell.hidden; }
  one("#shown").textContent = `${said}${shown} of ${cells.length} cells`;
  one("#clear").hidden = !chosen.some((wanted) => wanted.size);
}
for (const button of all("fieldset button")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    filter();
  });
}
function choose(labels) {
  for (const of of fieldsets) {
    for (const button of all("button", of)) button.setAttribute("aria-pressed", labels[of.dataset.name] === button.dataset.text);
  }
  filter();
}
one("#clear").addEventListener("click", () => choose({}));
if (chooseTable) chooseTable.addEventListener("change", () => { showTable(); filter(); });

// A click on a point shows its cells in the tables.
for (const point of all("[data-pick]")) {
  point.addEventListener("click", () => { choose(JSON.parse(point.dataset.pick)); one("#tables").scrollIntoView(); });
}

one("#order").addEventListener("change", (event) => {
  const sign = { up: 1, down: -1 }[event.target.value];
  for (const body of all(".scores tbody")) {
    const order = all("tr", body);
    order.forEach((row, number) => { row.dataset.number ??= number; });
    order.sort((a, b) => sign ? sign * (a.dataset.score - b.dataset.score) : a.dataset.number - b.dataset.number);
    body.append(...order);
  }
  filter();
});
for (const table of tables) {
  one(".more button", table).addEventListener("click", () => { table.classList.add("whole"); filter(); });
}
one(".filters").hidden = !tables.length;
showTable();
filter();
