"use strict";
(function () {
  var byId = function (id) { return document.getElementById(id); };
  var root = document.documentElement;

  // Theme: the reader's own choice for this page; the system's where there is none.
  var theme = byId("theme");
  theme.hidden = false;
  theme.addEventListener("click", function () {
    var dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tooltips of figures.
  var tip = byId("tip");
  function show(event) {
    var mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    var box = tip.getBoundingClientRect();
    tip.style.setProperty("--x", Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px");
    tip.style.setProperty("--y", Math.max(4, event.clientY - box.height - 12) + "px");
  }
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", function () { tip.hidden = true; }, { passive: true });

  // Trials: everything is written as text, never as markup.
  var data = JSON.parse(byId("data").textContent);
  // A column is [distinct values, index of each row's value].
  function decoded(coded) {
    var n = coded.length ? coded[0][1].length : 0, made = new Array(n);
    for (var i = 0; i < n; i += 1) { made[i] = coded.map(function (column) { return column[0][column[1][i]]; }); }
    return made;
  }
  var columns = data.columns, rows = decoded(data.values), words = rows.map(function (row) { return row.join(" ").toLowerCase(); });
  var size = 25, page = 0, order = rows.map(function (_, i) { return i; }), sorted = -1, up = true;
  var filter = byId("filter"), body = document.querySelector("#trial-table tbody"), head = document.querySelector("#trial-table thead");
  byId("trials-app").hidden = false;

  function element(name, text, className) {
    var made = document.createElement(name);
    if (text !== undefined) { made.textContent = text; }
    if (className) { made.className = className; }
    return made;
  }
  function matching() {
    var wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return order.filter(function (i) { return wanted.every(function (w) { return words[i].indexOf(w) >= 0; }); });
  }
  function draw() {
    var found = matching();
    page = Math.max(0, Math.min(page, Math.ceil(found.length / size) - 1));
    body.replaceChildren();
    found.slice(page * size, page * size + size).forEach(function (i) {
      var line = element("tr");
      rows[i].forEach(function (value, c) {
        var cell = element(c ? "td" : "th", undefined, data.numeric[c] ? "num" : value === "failed" ? "failed" : "");
        if (c === 0) {
          cell.scope = "row";
          var open = element("button", value);
          open.type = "button";
          open.addEventListener("click", function () { detail(i); });
          cell.append(open);
        } else { cell.textContent = value; }
        line.append(cell);
      });
      line.addEventListener("click", function () { detail(i); });
      body.append(line);
    });
    byId("found").textContent = found.length + " of " + rows.length + " trials" + (found.length > size ? ", page " + (page + 1) + " of " + Math.ceil(found.length / size) : "");
    byId("previous").disabled = page === 0;
    byId("next").disabled = (page + 1) * size >= found.length;
  }
  function detail(i) {
    var box = byId("trial");
    box.replaceChildren(element("h3", "Trial " + rows[i][0]));
    var list = element("dl", undefined, "card");
    columns.concat(data.extra_columns).forEach(function (name, c) {
      var coded = data.extra_values[c - columns.length], value = c < columns.length ? rows[i][c] : coded[0][coded[1][i]];
      if (value === "") { return; }
      var pair = element("div");
      pair.append(element("dt", name), element("dd", value));
      list.append(pair);
    });
    box.append(list);
  }
  var headRow = element("tr");
  columns.forEach(function (name, c) {
    var cell = element("th", undefined, data.numeric[c] ? "num" : "");
    cell.scope = "col";
    var button = element("button", name);
    button.type = "button";
    button.addEventListener("click", function () {
      up = sorted === c ? !up : true;
      sorted = c;
      order.sort(function (a, b) {
        var x = rows[a][c], y = rows[b][c], n = data.numeric[c] ? (parseFloat(x) || 0) - (parseFloat(y) || 0) : x < y ? -1 : x > y ? 1 : 0;
        return up ? n : -n;
      });
      headRow.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      draw();
    });
    cell.append(button);
    headRow.append(cell);
  });
  head.append(headRow);
  filter.addEventListener("input", function () { page = 0; draw(); });
  document.querySelectorAll("a[data-filter]").forEach(function (link) {
    link.addEventListener("click", function () { filter.value = link.dataset.filter; page = 0; draw(); });
  });
  byId("previous").addEventListener("click", function () { page -= 1; draw(); });
  byId("next").addEventListener("click", function () { page += 1; draw(); });
  draw();
})();
