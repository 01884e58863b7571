"use strict";
// Theme, sortable tables and the choice of one cell, shared by plot and gallery.
const root = document.documentElement;
const remembered = { get: (k) => { try { return localStorage.getItem(k); } catch { return null; } },
  set: (k, v) => { try { localStorage.setItem(k, v); } catch { /* a page from disk may have no storage */ } } };
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = (theme) => { root.dataset.theme = theme; document.dispatchEvent(new Event("theme")); };
setTheme(remembered.get("flgbench-theme") || (systemDark.matches ? "dark" : "light"));
systemDark.addEventListener("change", (e) => { if (!remembered.get("flgbench-theme")) setTheme(e.matches ? "dark" : "light"); });

function readJson(id) {
  const element = document.getElementById(id);
  return element ? JSON.parse(element.textContent) : null;
}

// One cell may be chosen anywhere; every part of the page that shows it listens.
let chosen = null;
function choose(cell) {
  chosen = chosen === cell ? null : cell;
  document.querySelectorAll("[data-cell]").forEach((e) => e.classList.toggle("picked", e.dataset.cell === chosen));
  document.dispatchEvent(new Event("choose"));
}

function sortTable(table, column, button) {
  const body = table.tBodies[0], head = button.closest("th");
  const descending = head.getAttribute("aria-sort") === "descending" ? false : head.getAttribute("aria-sort") === "ascending" ? true
    : button.dataset.first === "descending";
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const rows = [...body.rows].map((row) => [value(row), row]);
  const number = rows.every(([v]) => v === "" || !Number.isNaN(Number(v)));
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // missing stays last in both directions
    const order = number ? a - b : a.localeCompare(b);
    return descending ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    remembered.set("flgbench-theme", next);
    setTheme(next);
  });
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("thead th").forEach((th, column) => {
      const button = th.querySelector("button");
      if (button) button.addEventListener("click", () => sortTable(table, column, button));
    });
    table.tBodies[0].addEventListener("click", (e) => {
      const row = e.target.closest("tr[data-cell]");
      if (row && !String(getSelection())) choose(row.dataset.cell);
    });
  });
});
