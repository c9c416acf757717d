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

  // On paper nothing is a click away.
  var folded = [];
  addEventListener("beforeprint", function () {
    folded = Array.prototype.slice.call(document.querySelectorAll("details.more:not([open]), #card details:not([open])"));
    folded.forEach(function (part) { part.open = true; });
  });
  addEventListener("afterprint", function () { folded.forEach(function (part) { part.open = false; }); });

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
  document.addEventListener("scroll", function () { tip.hidden = true; focused(); }, { passive: true });

  function focused() {
    var link = document.activeElement && document.activeElement.closest("a.to");
    if (!link || !link.matches(":focus-visible")) { return; }
    var box = link.getBoundingClientRect();
    show({ target: link.querySelector("[data-tip]") || link, clientX: box.right, clientY: box.top });
  }
  document.addEventListener("focusin", focused);
  document.addEventListener("focusout", function () { tip.hidden = true; });

  // Squares of a heat map: one stop for Tab, then the arrow keys.
  document.addEventListener("keydown", function (event) {
    var step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    var from = event.target.closest ? event.target.closest("a.to") : null;
    if (!step || !from) { return; }
    event.preventDefault();
    var centre = function (link) { var b = link.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; };
    var here = centre(from), best = null, nearest = Infinity;
    from.closest("svg").querySelectorAll("a.to").forEach(function (link) {
      var at = centre(link), along = (at[0] - here[0]) * step[0] + (at[1] - here[1]) * step[1];
      var aside = Math.abs((at[0] - here[0]) * step[1]) + Math.abs((at[1] - here[1]) * step[0]);
      if (along > 1 && along + 20 * aside < nearest) { nearest = along + 20 * aside; best = link; }
    });
    if (best) { from.setAttribute("tabindex", "-1"); best.setAttribute("tabindex", "0"); best.focus(); }
  });

  // Trials: everything is written as text, never as markup.
  var data = JSON.parse(byId("data").textContent);
  // A column is [distinct values, index of each row's value].
  function decoded(coded) {
    var n = coded.length ? coded[0][1].length : 0, made = new Array(n);
    for (var i = 0; i < n; i += 1) { made[i] = coded.map(function (column) { return column[0][column[1][i]]; }); }
    return made;
  }
  var columns = data.columns, rows = decoded(data.values), words = rows.map(function (row) { return row.join(" ").toLowerCase(); });
  var size = 25, page = 0, order = rows.map(function (_, i) { return i; }), sorted = -1, up = true, opened = -1;
  var filter = byId("filter"), body = document.querySelector("#trial-table tbody"), head = document.querySelector("#trial-table thead");
  var CELL = columns.indexOf("cell"), ALPHA = columns.indexOf("alpha"), ARM = columns.indexOf("arm");
  byId("trials-app").hidden = false;

  function element(name, text, className) {
    var made = document.createElement(name);
    if (text !== undefined) { made.textContent = text; }
    if (className) { made.className = className; }
    return made;
  }
  function button(text, act) {
    var made = element("button", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }
  // "alpha:0.5" asks a column for exactly this value, a word alone any column for a part of one.
  function test(word) {
    var at = word.indexOf(":"), column = at > 0 ? columns.findIndex(function (name) { return name.toLowerCase() === word.slice(0, at); }) : -1;
    if (column < 0) { return function (i) { return words[i].indexOf(word) >= 0; }; }
    var value = word.slice(at + 1);
    return function (i) {
      var found = rows[i][column].toLowerCase();
      return found === value || (column === CELL && found.split(" ").indexOf(value) >= 0);
    };
  }
  function matching() {
    var tests = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
    return order.filter(function (i) { return tests.every(function (t) { return t(i); }); });
  }
  function shown(value, c) {
    if (c !== CELL) { return value; }
    var cells = value.split(" ");
    return cells.length > 3 ? cells[0] + " \u2026 " + cells[cells.length - 1] : cells.join(", ");
  }
  function draw() {
    var found = matching();
    page = Math.max(0, Math.min(page, Math.ceil(found.length / size) - 1));
    body.replaceChildren();
    found.slice(page * size, page * size + size).forEach(function (i) {
      var line = element("tr");
      if (i === opened) { line.className = "opened"; }
      rows[i].forEach(function (value, c) {
        var cell = element(c ? "td" : "th", undefined, data.numeric[c] ? "num" : value === "failed" ? "failed" : "");
        if (c === 0) { cell.scope = "row"; cell.append(button(value.slice(0, 10), function (event) { event.stopPropagation(); go(i); })); }
        else { cell.textContent = shown(value, c); }
        line.append(cell);
      });
      line.addEventListener("click", function () { go(i); });
      body.append(line);
    });
    byId("found").textContent = found.length + " of " + rows.length + " trials" + (found.length > size ? ", page " + (page + 1) + " of " + Math.ceil(found.length / size) : "");
    byId("previous").disabled = page === 0;
    byId("next").disabled = (page + 1) * size >= found.length;
  }
  function pair(name, value) {
    var made = element("div");
    made.append(element("dt", name), element("dd", value));
    return made;
  }
  function number(tenThousandths) { return (tenThousandths / 10000).toFixed(4); }
  function signed(tenThousandths) { return (tenThousandths < 0 ? "\u2212" : "+") + number(Math.abs(tenThousandths)); }

  // The address says what is open, so that the way back works: #trial=KEY, #trial=KEY&user=USER.
  function go(i, user) { location.hash = "trial=" + encodeURIComponent(rows[i][0]) + (user === undefined ? "" : "&user=" + encodeURIComponent(user)); }
  function follow() {
    var asked = new URLSearchParams(location.hash.slice(1)), key = asked.get("trial");
    if (key === null) { return; }
    var i = rows.findIndex(function (row) { return row[0] === key; });
    if (i < 0) { return; }
    detail(i, asked.get("user"));
  }
  // Users are read for some trials only: the first seed of a cell and alpha at the least.
  function sister(i) {
    return Object.keys(data.moves).map(Number).find(function (j) {
      return rows[j][CELL] === rows[i][CELL] && rows[j][ALPHA] === rows[i][ALPHA] && rows[j][ARM] === rows[i][ARM];
    });
  }
  function detail(i, user) {
    var box = byId("trial"), title = element("h3", "Trial " + rows[i][0]);
    opened = i;
    draw();
    title.tabIndex = -1;
    box.replaceChildren(title);
    var list = element("dl", undefined, "card"), all = element("details", undefined, "numbers");
    columns.concat(data.extra_columns).forEach(function (name, c) {
      var coded = data.extra_values[c - columns.length], value = c < columns.length ? rows[i][c] : coded[0][coded[1][i]];
      if (value !== "") { list.append(pair(name, value)); }
    });
    box.append(element("p", columns.map(function (name, c) { return c && rows[i][c] !== "" ? name + " " + shown(rows[i][c], c) : ""; }).filter(Boolean).join(" \u00b7 ")));
    all.append(element("summary", "Every setting of this trial"), list);
    box.append(all);
    if (rows[i].indexOf("done") >= 0) { box.append(element("p", "RecBole weights and config of this trial: llmkt export " + rows[i][0], "muted")); }
    var moves = data.moves[i], focus = title;
    if (moves) { focus = users(box, i, moves, user) || title; }
    else if (sister(i) !== undefined) {
      var line = element("p", "Its users are shown for the first seed of this cell and alpha: ");
      line.append(button("trial " + rows[sister(i)][0], function () { go(sister(i)); }));
      box.append(line);
    }
    box.scrollIntoView({ block: "start" });
    focus.focus({ preventScroll: focus === title });
  }
  function users(box, i, moves, wanted) {
    box.append(element("h4", "Users whose " + data.metric + " changed most against this trial\u2019s twin without transfer (alpha0)"));
    box.append(element("p", "The extremes of many users are mostly chance: examples, not evidence.", "muted"));
    var table = element("table"), top = element("tr"), inside = element("tbody"), open = null;
    ["user", "change", "with transfer", "without", "train rows", "profile"].forEach(function (name, c) {
      var cell = element("th", name, c > 0 && c < 5 ? "num" : "");
      cell.scope = "col";
      if (c === 5) { cell.className = "preview"; }
      top.append(cell);
    });
    moves.forEach(function (move) {
      var who = data.users[move[0]], line = element("tr"), name = element("th"), text = move[1] < 0 ? "no profile" : data.texts[move[1]];
      name.scope = "row";
      var choose = button(who[0], function (event) { event.stopPropagation(); go(i, who[0]); });
      choose.setAttribute("aria-expanded", String(who[0] === wanted));
      name.append(choose);
      line.append(name, element("td", signed(move[2] - move[3]), "num"), element("td", number(move[2]), "num"), element("td", number(move[3]), "num"), element("td", String(who[1]), "num"));
      line.append(element("td", text.length > 90 ? text.slice(0, 90) + "\u2026" : text, "preview"));
      line.addEventListener("click", function () { go(i, who[0]); });
      if (who[0] === wanted) { line.className = "opened"; open = move; }
      inside.append(line);
    });
    var headLine = element("thead"), scroll = element("div", undefined, "scroll");
    headLine.append(top);
    table.append(headLine, inside);
    scroll.append(table);
    box.append(scroll);
    return open ? person(box, open) : null;
  }
  function person(box, move) {
    var who = data.users[move[0]], title = element("h4", "User " + who[0]), two = element("div", undefined, "moved");
    title.tabIndex = -1;
    box.append(title, element("p", "What was written about this user:", "muted"));
    box.append(element("blockquote", move[1] < 0 ? "There is no profile of this user: masked out of the transfer loss." : data.texts[move[1]]));
    [["Entered the list", move[4]], ["Left the list", move[5]], ["Liked in test, and in both lists", move[6]]].forEach(function (side, which) {
      var part = element("div"), list = element("ul");
      side[1].forEach(function (found) {
        var code = which < 2 ? found : found[0], line = element("li", data.titles[Math.floor(code / 2)]);
        if (which === 2) { line.append(element("span", " rank " + found[1] + " \u2192 " + found[2], "muted")); }
        else if (code % 2) { line.append(element("span", " liked in test", "liked")); }
        list.append(line);
      });
      part.append(element("h5", side[0]), side[1].length ? list : element("p", "nothing", "muted"));
      two.append(part);
    });
    box.append(two);
    return title;
  }
  var headRow = element("tr");
  columns.forEach(function (name, c) {
    var cell = element("th", undefined, data.numeric[c] ? "num" : "");
    cell.scope = "col";
    cell.append(button(name, function () {
      up = sorted === c ? !up : true;
      sorted = c;
      order.sort(function (a, b) {
        var x = rows[a][c], y = rows[b][c], n = data.numeric[c] ? (parseFloat(x) || 0) - (parseFloat(y) || 0) : x < y ? -1 : x > y ? 1 : 0;
        return up ? n : -n;
      });
      headRow.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      draw();
    }));
    headRow.append(cell);
  });
  head.append(headRow);
  filter.addEventListener("input", function () { page = 0; draw(); });
  document.querySelectorAll("a[data-filter]").forEach(function (link) {
    link.addEventListener("click", function () { filter.value = link.dataset.filter; page = 0; byId("trial").replaceChildren(); opened = -1; draw(); });
  });
  byId("previous").addEventListener("click", function () { page -= 1; draw(); });
  byId("next").addEventListener("click", function () { page += 1; draw(); });
  addEventListener("hashchange", follow);
  draw();
  follow();
})();
