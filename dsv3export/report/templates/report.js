"use strict";
(() => {
  const key = (row, column) => {
    const text = row.cells[column].dataset.key;
    const number = Number(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

  const sort = (head) => {
    const table = head.closest("table");
    const heads = [...head.parentNode.cells];
    const column = heads.indexOf(head);
    const before = head.getAttribute("aria-sort");
    // Of numbers, the largest error is what one looks for first.
    const first = head.classList.contains("num") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = before === first ? other : first;
    for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => sign * compare(key(a, column), key(b, column)));
    body.append(...rows);
  };
  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => sort(button.parentNode));
  }

  for (const input of document.querySelectorAll("[data-filter]")) {
    const table = input.closest("section").querySelector(".sortable");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }

  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    if (mark === null) return hide();
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const gap = 14;
    const left = Math.min(event.clientX + gap, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + gap + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${below ? event.clientY + gap : Math.max(event.clientY - gap - tip.offsetHeight, 8)}px`;
  });
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
