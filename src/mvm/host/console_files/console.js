// The console in the browser. What guests and files say is only ever set as text, never as markup.

const MAX_EVENTS = 200;
const REFRESH_MS = 1000;
const $ = (id) => document.getElementById(id);

/** An element of that name with these attributes and children; text is text. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

async function get(path) {
  const answer = await fetch(path);
  const body = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(body.error ?? `the agent answered ${answer.status}`);
  return body;
}

const state = (name) => el("span", { class: `state ${name}` }, name);
const counts = (found) => Object.entries(found).filter(([, count]) => count).map(([name, count]) => `${count} ${name}`).join(", ") || "none";
const link = (address, text) => el("button", { type: "button", onclick: () => explain(address) }, text ?? address);
const row = (...cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell ?? "–")));

function table(headers, rows) {
  if (!rows.length) return null;
  return el("table", {}, el("thead", {}, el("tr", {}, ...headers.map((header) => el("th", {}, header)))), el("tbody", {}, ...rows));
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, ...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function section(title, content) {
  return content ? [el("h3", {}, title), content] : [];
}

// Overview

async function overview() {
  const found = await get("/api/overview");
  $("states").replaceChildren(...Object.entries(found.states).map(([name, count]) => el("li", { class: `state ${name}` }, `${count} ${name}`)));
  $("no-tenants").hidden = found.tenants.length > 0;
  $("tenants").replaceChildren(
    ...found.tenants.map((tenant) =>
      row(
        link(tenant.address),
        tenant.gateway ? state(tenant.gateway.state) : "none",
        tenant.users,
        counts(tenant.states),
        tenant.errors ? el("span", { class: "bad" }, tenant.errors) : "–",
      ),
    ),
  );
}

// Explanations

let explained = null;

async function explain(address) {
  explained = address;
  const parts = address.split("/");
  const path = parts.map((part, index) => link(parts.slice(0, index + 1).join("/"), part)).flatMap((step) => [step, " / "]).slice(0, -1);
  let content;
  try {
    const [[kind, found]] = Object.entries(await get(`/api/explain?address=${encodeURIComponent(address)}`));
    content = { tenant: ofTenant, pool: ofPool, instance: ofInstance }[kind](found);
  } catch (error) {
    content = [el("p", { class: "bad" }, error.message)];
  }
  if (explained !== address) return; // somebody asked for something else meanwhile
  $("path").replaceChildren(...path);
  $("explanation").replaceChildren(...content.filter(Boolean));
  $("explained").hidden = false;
}

function ofTenant(found) {
  return [
    facts([["instances", counts(found.states)], ["users", found.users], ["gateway", found.gateway ? link(found.gateway.address) : "none"]]),
    ...section("Pools", table(["pool", "role", "instances"], found.pools.map((pool) => row(link(pool.address), pool.role, counts(pool.states))))),
    ...section("Errors", table(["instance", "error"], found.errors.map((each) => row(link(each.address), each.error)))),
    ...section("Quotas", quotas(found.quotas)),
    ...section("Recent", recent(found.recent)),
  ];
}

function ofPool(found) {
  const left = found.instances_left_out;
  return [
    facts([["role", found.role], ["desired", counts(found.desired)], ["instances", counts(found.states)]]),
    ...section(
      "Instances",
      table(["instance", "state", "user", "why"], found.instances.map((i) => row(link(i.address, i.address.split("/")[2]), state(i.state), i.user, i.why))),
    ),
    left ? el("p", {}, `and ${left} more that are not up`) : null,
    ...section("Recent", recent(found.recent)),
  ];
}

function ofInstance(found) {
  return [
    facts([
      ["state", state(found.state)],
      ["user", found.user],
      ["why", found.why],
      ["blocks its sleep", found.blocks_sleep],
      ["doing", found.activity && `${found.activity}, ${found.in_flight} in flight`],
      ["next alarm", found.next_alarm_at],
      ["woken for it", found.alarm_wake_at],
      ["last error", found.last_error && el("span", { class: "bad" }, found.last_error)],
    ]),
    ...section("Last wake", timeline(found.last_wake)),
    ...section("Last sleep", timeline(found.last_sleep)),
    ...section("Last transitions", recent(found.last_transitions)),
  ];
}

/** The stages of a wake or sleep, each as wide as it was long. */
function timeline(found) {
  if (!found) return null;
  const stages = found.stages.map((stage) => {
    const bar = el("span", { title: `${stage.stage}: ${stage.milliseconds.toFixed(1)} ms` });
    bar.style.flexGrow = Math.max(stage.milliseconds, 0.01);
    return bar;
  });
  const words = found.stages.map((stage) => `${stage.stage} ${stage.milliseconds.toFixed(1)}`).join(" · ");
  const by = found.actor ? ` by ${found.actor}` : "";
  return el("div", { class: "timeline" }, el("div", { class: "stages" }, ...stages), el("p", { class: "mono" }, `${found.kind}${by}: ${found.total_ms.toFixed(1)} ms = ${words}`));
}

const quotas = (found) => table(["quota", "used", "limit"], Object.entries(found).map(([name, quota]) => row(name, quota.used, quota.limit)));
const recent = (lines) =>
  table(["when", "what", "who", "detail"], [...lines].reverse().map((line) => row(line.timestamp.slice(0, 19).replace("T", " "), line.action, line.actor, line.detail)));

// Live events

let due = null;

/** Look again soon after something happened, once for many events. */
function refresh() {
  due ??= setTimeout(async () => {
    due = null;
    await Promise.allSettled([overview(), explained && explain(explained)]);
  }, REFRESH_MS);
}

function follow() {
  const source = new EventSource("/api/events");
  source.onopen = () => ($("connection").textContent = "live");
  source.onerror = () => ($("connection").textContent = source.readyState === EventSource.CLOSED ? "ended: type `mvm console` again" : "the agent does not answer; trying again");
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    const place = [event.tenant_id, event.pool_id, event.instance_id].filter(Boolean).join("/");
    const item = el(
      "li",
      { value: event.number },
      el("time", { datetime: event.timestamp }, event.timestamp.slice(11, 19)),
      el("span", {}, event.kind),
      el("span", {}, place ? link(place) : ""),
      el("span", {}, [event.actor && `by ${event.actor}`, event.detail].filter(Boolean).join(": ")),
    );
    $("events").prepend(item);
    while ($("events").childElementCount > MAX_EVENTS) $("events").lastElementChild.remove();
    refresh();
  };
}

await overview().catch((error) => ($("connection").textContent = error.message));
follow();
