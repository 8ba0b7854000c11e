"use strict";
(() => {
  const body = document.querySelector(".index tbody"), rows = [...body.rows];
  const filter = document.getElementById("filter"), shown = document.getElementById("shown");
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  document.querySelectorAll(".index th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, up = head.ariaSort !== "ascending";
    document.querySelectorAll(".index th").forEach((other) => { other.ariaSort = null; });
    head.ariaSort = up ? "ascending" : "descending";
    const number = rows.every((row) => value(row, column) === "" || Number.isFinite(Number(value(row, column))));
    rows.sort((a, b) => (up ? 1 : -1) * (number ? value(a, column) - value(b, column) : value(a, column).localeCompare(value(b, column))));
    body.append(...rows);
  }));
  const update = () => {
    const text = filter.value.toLowerCase();
    let count = 0;
    for (const row of rows) { row.hidden = !row.textContent.toLowerCase().includes(text); count += !row.hidden; }
    shown.textContent = `${count} of ${rows.length}`;
  };
  filter.addEventListener("input", update);
  update();
})();
