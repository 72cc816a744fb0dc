"use strict";
/*
 * Shows what /status.json and /history.json tell, and keeps it up to date while somebody looks. What
 * is on the page is replaced where it has changed. No text becomes HTML, and nothing is asked for
 * but these two.
 */
(() => {
  const STATUS_MS = 2000, HISTORY_MS = 15000, PATIENCE_MS = 4000, PLOT_HEIGHT = 150, PAST_WIDTH = 150, PAST_HEIGHT = 30;
  const MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
  const RANGES = {  // spans: the first one that is long enough for what there is
    hour: {name: "last hour", spans: [10 * MINUTE, 20 * MINUTE, HOUR]},
    day: {name: "last 24 hours", spans: [2 * HOUR, 4 * HOUR, 12 * HOUR, DAY]},
  };
  const LEVELS = {
    "up": "well", "connected": "well", "self": "well", "live": "well",
    "down": "critical", "not connected": "critical",
    "set down": "warning", "partly down": "warning", "silent": "warning",
    "draining": "notice", "not checked": "notice", "stopping": "notice",
  };

  // --- texts

  const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
  const fine = new Intl.NumberFormat("en", {maximumFractionDigits: 1});
  const none = "–";
  const count = value => value >= 1e6 ? `${fine.format(value / 1e6)} M` :
    value >= 1e5 ? `${whole.format(value / 1e3)} k` : whole.format(value);
  const rate = value => value !== 0 && value < 0.05 ? "< 0.1" : value < 100 ? fine.format(value) : count(value);
  const time = ms => ms < 10 ? `${fine.format(ms)} ms` :
    ms < 1000 ? `${whole.format(ms)} ms` : `${fine.format(ms / 1000)} s`;
  const share = value => `${whole.format(value * 100)} %`;
  const bytes = value => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let power = 0;
    for (; value >= 1000 && power < units.length - 1; power++)
      value /= 1000;
    return `${power > 0 && value < 100 ? fine.format(value) : whole.format(value)} ${units[power]}`;
  };
  const capital = text => text[0].toUpperCase() + text.slice(1);
  const traffic = value => `${bytes(value)}/s`;
  const or = (format, value) => value === null || value === undefined ? none : format(value);
  const daysIn = seconds => Math.floor(seconds / DAY);
  const duration = seconds => {
    const days = daysIn(seconds), hours = Math.floor(seconds / HOUR) % 24;
    const minutes = Math.floor(seconds / MINUTE) % 60;
    return days > 0 ? `${days} d ${hours} h` : hours > 0 ? `${hours} h ${minutes} min` :
      minutes > 0 ? `${minutes} min` : `${Math.max(0, Math.floor(seconds))} s`;
  };
  const clock = (date, options) => date.toLocaleTimeString("en-GB", {hour: "2-digit", minute: "2-digit", ...options});
  const dayOf = (date, options) => date.toLocaleDateString("en-GB", {day: "numeric", month: "short", ...options});
  const exactly = date => clock(date, {second: "2-digit"});
  const moment = unix => {
    const date = new Date(unix * 1000), today = date.toDateString() === new Date().toDateString();
    return today ? clock(date) : `${dayOf(date)} ${clock(date)}`;
  };

  // --- elements

  const byId = id => document.getElementById(id);
  const make = (namespace, name, attributes, children) => {
    const element = document.createElementNS(namespace, name);
    for (const [key, value] of Object.entries(attributes))
      element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const html = (name, attributes = {}, ...children) => make("http://www.w3.org/1999/xhtml", name, attributes, children);
  const svg = (name, attributes = {}, ...children) => make("http://www.w3.org/2000/svg", name, attributes, children);
  const icon = level => svg("svg", {"aria-hidden": "true"}, svg("use", {href: `#icon-${level}`}));
  const levelOf = state => LEVELS[state] || "notice";
  const badge = (state, since) => [
    html("span", {class: `state ${levelOf(state)}`}, icon(levelOf(state)), state),
    ...(since ? [" ", html("span", {class: "since"}, `since ${moment(since)}`)] : []),
  ];
  /** Puts these in the place of what is there, unless it is the same: then focus and selection stay. */
  const show = (element, ...children) => {
    const fresh = element.cloneNode(false);
    fresh.append(...children);
    if (fresh.innerHTML !== element.innerHTML)
      element.replaceChildren(...fresh.childNodes);
  };
  const facts = rows => html("dl", {class: "facts"}, ...rows.map(([name, ...value]) =>
    html("div", {}, html("dt", {}, name), html("dd", {}, ...value))));

  // --- the verdict

  const problemText = problem => problem.text + (problem.since ? ` since ${moment(problem.since)}` : "");

  /** What is behind "All well". */
  const summary = ({shards, redis, directory, certificates}) => {
    const others = [...(redis ? ["Redis"] : []), ...(directory ? ["the directory"] : [])].join(" and ");
    const first = Math.min(...certificates.map(certificate => certificate.not_after));
    const all = ["", "The shard is", "Both shards are"][shards.length] || `All ${shards.length} shards are`;
    return [`${all} up`,
      ...(others ? [`${others} answer${others.includes(" and ") ? "" : "s"}`] : []),
      ...(certificates.length > 0 ? [`certificates are good for ${daysIn(first - Date.now() / 1000)} days`] : []),
    ].join(", ") + ".";
  };

  const showVerdict = status => {
    const [first, ...others] = status.problems;
    const level = first ? first.level : "well", headline = first ? problemText(first) : "All well";
    document.documentElement.dataset.level = level;
    byId("mark").setAttribute("href", `#icon-${level}`);
    show(byId("headline"), headline);
    show(byId("problems"), ...others.map(problem =>
      html("li", {}, icon(problem.level), html("span", {}, problemText(problem)))));
    show(byId("summary"), first ? "" : summary(status));
    document.title = `${headline} – ${status.process.host} – imapmux`;
  };

  // --- figures

  const tile = (name, value, more, alarm = false) => html("div", alarm ? {class: "alarm"} : {},
    html("dt", {}, name), html("dd", {class: "value"}, ...[].concat(value)), html("dd", {class: "more"}, more));
  const small = text => html("small", {}, text);

  const showTiles = status => {
    const {sessions, connections, totals} = status, lately = status.lately || {};
    show(byId("tiles"),
      tile("Sessions", count(sessions.now), `of ${count(sessions.most)}`),
      tile("Logins", [or(rate, lately.logins_ok), small(" /s")],
        `${or(rate, lately.logins_refused)} /s refused`),
      tile("Login time, 95 %", or(time, lately.slow_ms), `median ${or(time, lately.median_ms)}`),
      tile("In line", count(connections.waiting), `${count(connections.logins_in_flight)} log in now`,
        connections.waiting > 0),
      tile("Pool hits", or(share, lately.reused),
        `${count(connections.warm)} warm, ${count(connections.parked)} parked`),
      tile("Errors", [or(rate, lately.errors), small(" /s")],
        `${count(totals.errors)} so far`, lately.errors > 0),
      tile("Traffic", or(traffic, lately.bytes_out === undefined ? null : lately.bytes_out + lately.bytes_in),
        `${bytes(totals.bytes_out + totals.bytes_in)} so far`));
  };

  // --- shards

  const cell = (label, classes, ...children) =>
    html("td", {"role": "cell", "data-label": label, "class": classes}, ...children);
  const address = at => html("li", {class: levelOf(at.state)}, icon(levelOf(at.state)),
    html("span", {class: "soft"}, at.state === "up" ? at.address : `${at.address} ${at.state}`));

  const showShards = status => {
    const rows = status.shards.map(shard => html("tr", {role: "row"},
      html("th", {role: "rowheader", scope: "row"}, shard.shard),
      html("td", {role: "cell"}, ...badge(shard.state, ["down"].includes(shard.state) ? shard.since : null),
        ...(shard.state !== "up" && shard.error ? [html("span", {class: "why"}, shard.error)] : []),
        ...(shard.replica ? [html("span", {class: "why"}, `replica: ${shard.replica}`)] : [])),
      cell("Sessions", "number", count(shard.sessions)),
      cell(capital(RANGES[range].name), "full", past(shard.shard)),
      cell("In line", "number", count(shard.waiting)),
      cell("Connections", "number", count(shard.connections),
        html("span", {class: "soft"}, shard.max_connections ? ` of ${count(shard.max_connections)}` : "")),
      cell("Logins refused", "number", count(shard.logins_failed)),
      cell("Addresses", "full", html("ul", {class: "addresses"}, ...shard.addresses.map(address)))));
    show(byId("shard-rows"), ...rows);
  };

  /** A shard's sessions, and when it was down. */
  const past = title => {
    const data = history && history[range], shard = data && data.shards[title];
    const picture = svg("svg", {
      class: "past", viewBox: `0 0 ${PAST_WIDTH} ${PAST_HEIGHT}`, preserveAspectRatio: "none", role: "img"});
    if (!shard || shard.sessions.length === 0) {
      picture.setAttribute("aria-label", "nothing known yet");
      return picture;
    }
    const most = Math.max(1, ...shard.sessions), x = xScale(data, 0, PAST_WIDTH);
    const y = value => PAST_HEIGHT - 2 - value / most * (PAST_HEIGHT - 4);
    picture.setAttribute("aria-label", `${RANGES[range].name}: up to ${count(Math.max(...shard.sessions))} sessions` +
      (shard.down.includes(1) ? ", down at times" : ""));
    for (const [from, to] of stretches(shard.down)) {
      const left = x(data.at[from] - data.interval_seconds), width = Math.max(1.5, x(data.at[to]) - left);
      picture.append(svg("rect", {class: "outage", x: left, y: 0, width, height: PAST_HEIGHT}));
    }
    picture.append(svg("path", {
      "class": "first", "vector-effect": "non-scaling-stroke", "d": line(data, shard.sessions, x, y)}));
    return picture;
  };

  /** From where to where a list has ones. */
  const stretches = flags => {
    const found = [];
    flags.forEach((flag, index) => {
      const last = found[found.length - 1];
      if (flag && last && last[1] === index - 1)
        last[1] = index;
      else if (flag)
        found.push([index, index]);
    });
    return found;
  };

  // --- graphs

  const CHARTS = [
    {title: "Sessions", wide: true, format: count, least: 1, series: [["sessions", "sessions"]]},
    {title: "Logins per second", format: rate, series: [["logins_ok", "accepted"], ["logins_refused", "refused"]]},
    {title: "Login time", format: time, series: [["median_ms", "median"], ["slow_ms", "95 %"]]},
    {title: "Waiting in line", format: count, least: 1, series: [["waiting", "waiting"]]},
    {title: "Traffic", format: traffic, series: [["bytes_out", "to clients"], ["bytes_in", "from clients"]]},
    {title: "Pool hits", format: share, most: 1, series: [["reused", "hits"]]},
    {title: "Errors per second", format: rate, series: [["errors", "errors"]]},
  ];
  const CLASSES = ["first", "second"];
  let status = null, history = null, range = "hour";

  const spanOf = data => {
    const there = data.at[data.at.length - 1] - data.at[0], {spans} = RANGES[range];
    return spans.find(span => there <= span) || spans[spans.length - 1];
  };
  const xScale = (data, left, right) => {
    const end = data.at[data.at.length - 1], span = spanOf(data);
    return at => Math.max(left, left + (at - end + span) / span * (right - left));
  };
  const ago = seconds => seconds === 0 ? "now" : seconds < 2 * HOUR ? `${fine.format(seconds / MINUTE)} min ago` :
    `${fine.format(seconds / HOUR)} h ago`;
  /** A path through what there is; what is alone is a dot. */
  const line = (data, values, x, y) => {
    let path = "", before = false;
    values.forEach((value, index) => {
      if (value !== null)
        path += `${before ? "L" : "M"}${x(data.at[index]).toFixed(1)} ${y(value).toFixed(1)}` +
          (!before && (index + 1 === values.length || values[index + 1] === null) ? "h.1" : "");
      before = value !== null;
    });
    return path;
  };
  /** Round numbers from 0 to above the most there is, no closer than `least`. */
  const steps = (most, least) => {
    const power = 10 ** Math.floor(Math.log10(most / 3));
    const step = Math.max(least, [1, 2, 5, 10].map(one => one * power).find(one => one * 3 >= most));
    return [0, step, 2 * step, 3 * step].filter((value, index) => index === 0 || value - step < most);
  };
  const valuesOf = (chart, data) => chart.series.map(([name]) => data[name]);
  const known = values => values.filter(value => value !== null);

  const describe = (chart, data) => chart.series.map(([name, label]) => {
    const values = known(data[name]), when = `in the ${RANGES[range].name}`;
    if (values.length === 0)
      return `${label}: nothing ${when}`;
    const [now, least, most] = [data[name][data[name].length - 1], Math.min(...values), Math.max(...values)];
    return `${label}: now ${or(chart.format, now)}, between ${chart.format(least)} and ${chart.format(most)} ${when}`;
  }).join("; ");

  const makeChart = (chart, index) => {
    const id = `chart-${index}`;
    chart.legend = html("p", {class: "legend"});
    chart.plot = svg("svg", {
      "class": "plot", "role": "img", "aria-labelledby": id, "aria-describedby": `${id}-text`});
    chart.table = html("div", {
      "class": "scroll", "tabindex": "0", "role": "region", "aria-label": `${chart.title}, values`});
    chart.details = html("details", {}, html("summary", {}, "As a table"), chart.table);
    chart.id = id;
    chart.plot.addEventListener("pointermove", event => point(chart, event));
    chart.plot.addEventListener("pointerleave", () => point(chart, null));
    chart.details.addEventListener("toggle", () => fillTable(chart));
    return html("figure", {class: chart.wide ? "chart wide" : "chart"},
      html("figcaption", {}, html("h3", {id}, chart.title), chart.legend), chart.plot, chart.details);
  };

  /** The values of one point, the last one unless the pointer says otherwise. */
  const showLegend = (chart, data, index) => {
    const last = index === data.at.length - 1;
    show(chart.legend, ...chart.series.map(([name, label], place) => html("span", {},
      html("span", {class: `key ${CLASSES[place]}`}), `${label} `, html("b", {}, or(chart.format, data[name][index])))),
    ...(last ? [] : [html("span", {}, `at ${clock(new Date(data.at[index] * 1000))}`)]));
  };

  const drawAxes = (chart, marks, box, y, span) => {
    for (const mark of marks)
      chart.plot.append(
        svg("line", {class: "grid", x1: box.left, x2: box.right, y1: y(mark), y2: y(mark)}),
        svg("text", {"x": box.left - 6, "y": y(mark) + 4, "text-anchor": "end"}, chart.format(mark)));
    const parts = box.right - box.left > 420 ? 4 : 2;
    for (let part = 0; part <= parts; part++)
      chart.plot.append(svg("text", {
        "x": box.left + (box.right - box.left) * part / parts, "y": PLOT_HEIGHT - 4,
        "text-anchor": part === 0 ? "start" : part === parts ? "end" : "middle"}, ago(span * (1 - part / parts))));
  };

  const drawChart = chart => {
    const data = history && history[range], width = chart.plot.clientWidth;
    if (!data || width === 0 || data.at.length === 0)
      return;
    const most = chart.most || Math.max(0, ...valuesOf(chart, data).flatMap(known));
    const marks = chart.most ? [0, 0.5, 1] : steps(most > 0 ? most : 1, chart.least || 0);
    const top = marks[marks.length - 1];
    const letters = Math.max(...marks.map(mark => chart.format(mark).length));
    const box = {left: 12 + 6.2 * letters, right: width - 6, top: 8, bottom: PLOT_HEIGHT - 22};
    const x = xScale(data, box.left, box.right), y = value => box.bottom - value / top * (box.bottom - box.top);
    chart.x = x;
    chart.plot.setAttribute("viewBox", `0 0 ${width} ${PLOT_HEIGHT}`);
    chart.plot.replaceChildren(svg("desc", {id: `${chart.id}-text`}, describe(chart, data)));
    drawAxes(chart, marks, box, y, spanOf(data));
    const paths = valuesOf(chart, data).map(values => line(data, values, x, y));
    if (paths[0] && !paths[0].includes("M", 1))
      chart.plot.append(svg("path", {class: "area", d: `${paths[0]}V${box.bottom}H${x(data.at[0]).toFixed(1)}Z`}));
    paths.forEach((d, place) => chart.plot.append(svg("path", {class: CLASSES[place], d})));
    showLegend(chart, data, data.at.length - 1);
    fillTable(chart);
  };

  /** Shows what was there where the pointer is. */
  const point = (chart, event) => {
    const data = history && history[range], old = chart.plot.querySelector(".cursor");
    if (old)
      old.remove();
    if (!data || data.at.length === 0)
      return;
    let index = data.at.length - 1;
    if (event) {
      const at = event.clientX - chart.plot.getBoundingClientRect().left;
      while (index > 0 && chart.x(data.at[index]) > at)
        index--;
      const x = chart.x(data.at[index]);
      chart.plot.append(svg("line", {class: "cursor", x1: x, x2: x, y1: 4, y2: PLOT_HEIGHT - 22}));
    }
    showLegend(chart, data, index);
  };

  /** Some dozens of rows, the latest first; only if somebody has opened it. */
  const fillTable = chart => {
    const data = history && history[range];
    if (!data || !chart.details.open)
      return;
    const every = Math.ceil(data.at.length / 60), rows = [];
    for (let index = data.at.length - 1; index >= 0; index -= every)
      rows.push(html("tr", {}, html("td", {}, exactly(new Date(data.at[index] * 1000))),
        ...chart.series.map(([name]) => html("td", {class: "number"}, or(chart.format, data[name][index])))));
    show(chart.table, html("table", {},
      html("thead", {}, html("tr", {}, html("th", {scope: "col"}, "Time"),
        ...chart.series.map(([, label]) => html("th", {scope: "col", class: "number"}, label)))),
      html("tbody", {}, ...rows)));
  };

  const showHistory = () => {
    show(byId("past"), capital(RANGES[range].name));
    CHARTS.forEach(drawChart);
    if (status)
      showShards(status);
  };

  // --- what is around

  const card = (title, state, ...children) =>
    html("section", {}, html("h3", {}, html("span", {}, title), ...(state ? badge(state) : [])), ...children);

  const twoLines = (first, second) => html("span", {}, first, html("span", {class: "why"}, second));

  const expiry = ({name, not_after}) => {
    const days = daysIn(not_after - Date.now() / 1000);
    const level = days < 0 ? "critical" : days < 14 ? "warning" : "well";
    return [twoLines(name, `until ${dayOf(new Date(not_after * 1000), {year: "numeric"})}`),
      html("span", {class: `state ${level}`}, icon(level), days < 0 ? "expired" : `${whole.format(days)} days`)];
  };

  const neighbour = ({host, pid, sessions, state}) =>
    [twoLines(`${host || "?"} (${pid || "?"})`, `${or(count, sessions)} sessions`), ...badge(state)];

  const showCards = ({redis, directory, certificates, proxies, process}) => show(byId("cards"),
    ...(redis ? [card("Redis", redis.state, facts([
      ["Commands", count(redis.commands)],
      ["Without an answer", count(redis.failures)]]))] : []),
    ...(directory ? [card("Directory", directory.state, facts([
      ["Look-ups", count(directory.lookups)],
      ["Connections", count(directory.connections)],
      ["Waiting", count(directory.waiting)],
      ["Without an answer", count(directory.failures)]]))] : []),
    card("Certificates", null, certificates.length > 0 ? facts(certificates.map(expiry)) :
      html("p", {class: "soft"}, "No listener speaks TLS")),
    ...(proxies.length > 0 ? [card("Proxies", null, facts(proxies.map(neighbour)))] : []),
    card("This process", process.state === "running" ? null : process.state, facts([
      ["Version", process.version],
      ["Running for", duration(process.uptime_seconds)],
      ["Worker threads", count(process.workers)],
      ["Process", String(process.pid)]])));

  // --- keeping up to date

  let lastAnswer = null, historyAt = 0, timer = null;

  const ask = async path => {
    const answer = await fetch(path, {cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS)});
    if (!answer.ok)
      throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  };

  const showStatus = () => {
    const {process} = status;
    showVerdict(status);
    showTiles(status);
    showShards(status);
    showCards(status);
    show(byId("meta"),
      `version ${process.version} · up ${duration(process.uptime_seconds)} · as of ${exactly(lastAnswer)}`);
  };

  const showStale = failed => {
    document.documentElement.classList.toggle("is-stale", failed);
    byId("stale").hidden = !failed;
    show(byId("stale"), failed ? `No answer since ${exactly(lastAnswer)}. What is below is as it was then.` : "");
  };

  const update = async () => {
    clearTimeout(timer);
    if (document.hidden)
      return;
    try {
      const historyDue = Date.now() - historyAt >= HISTORY_MS || history.hour.at.length === 0;
      [status, history] = await Promise.all([ask("/status.json"), historyDue ? ask("/history.json") : history]);
      lastAnswer = new Date();
      byId("plain").hidden = true;
      byId("live").hidden = false;
      showStale(false);
      showStatus();
      if (historyDue) {
        historyAt = Date.now();
        showHistory();
      }
    } catch (failure) {
      if (lastAnswer)
        showStale(true);
      else
        document.documentElement.classList.remove("script");  // what the server has written is shown
    }
    clearTimeout(timer);
    timer = setTimeout(update, STATUS_MS);
  };

  const choose = chosen => {
    range = chosen.dataset.range;
    for (const button of document.querySelectorAll("[data-range]"))
      button.setAttribute("aria-pressed", String(button === chosen));
    showHistory();
  };

  document.documentElement.classList.add("script");
  document.addEventListener("DOMContentLoaded", () => {
    byId("charts").append(...CHARTS.map(makeChart));
    for (const button of document.querySelectorAll("[data-range]"))
      button.addEventListener("click", () => choose(button));
    new ResizeObserver(() => CHARTS.forEach(drawChart)).observe(byId("charts"));
    document.addEventListener("visibilitychange", update);
    update();
  });
})();
