// Drives the operator's page in Chromium. Run by tests/it/browser.rs, which has the databases and the relay: `stage("word")` has it
// do something there, and waits until it is done. Every wait is for a condition; nothing sleeps.
import assert from "node:assert/strict";
import { readFile, mkdir } from "node:fs/promises";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const { PAGE_URL: base, PAGE_CHROMIUM: executablePath, PAGE_SCREENSHOTS: folder } = process.env;
const axe = await readFile(new URL("./node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const PATIENCE = 30_000;
const PHONE = { width: 375, height: 740 };
const DESK = { width: 1280, height: 860 };

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
/** Has the test do something with the databases. Its answer. */
async function stage(what) {
  console.log(`DO ${what}`);
  const { value, done } = await answers.next();
  assert.ok(!done, "the test has gone");
  return value;
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const faults = [];

/** A browser window of its own, in which everything that must not happen is noted. */
async function open(options = {}) {
  const context = await browser.newContext({ viewport: DESK, colorScheme: "light", ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`error: ${error}`));
  page.on("console", (message) => {
    // That a page was refused is told as an error too; which ones may be is checked below.
    const expected = /the server responded with a status of (401|403|409)/.test(message.text());
    if (["error", "warning"].includes(message.type()) && !expected) faults.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(`${base}/`)) faults.push(`request: ${request.url()}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 500) faults.push(`${response.status()}: ${response.url()}`);
  });
  return page;
}

async function signIn(page, token) {
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
}

/** What the page says is the matter, without its being loaded again. */
async function says(page, matter) {
  await page.locator(`.health[data-matter="${matter}"]`).waitFor();
}

/** No serious fault for those who cannot see it well, in light and dark; and no scrolling sideways on a phone. */
async function isForEverybody(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const serious = violations.filter((it) => ["serious", "critical"].includes(it.impact));
    const told = serious.map((it) => `${it.id}: ${it.nodes.map((node) => `${node.html} ${node.failureSummary}`).join("\n")}`);
    assert.deepEqual(told, [], `${name}, ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(PHONE);
  const { room, taken } = await page.evaluate(() => ({ room: innerWidth, taken: document.documentElement.scrollWidth }));
  assert.ok(taken <= room, `${name} is ${taken} wide on a phone of ${room}`);
  await page.setViewportSize(DESK);
}

async function picture(page, name, { colorScheme = "light", viewport = DESK } = {}) {
  if (!folder) return;
  await mkdir(folder, { recursive: true });
  await page.emulateMedia({ colorScheme });
  await page.setViewportSize(viewport);
  await page.evaluate(() => { document.activeElement?.blur(); scrollTo(0, 0); });
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(DESK);
}

const scenes = {
  async "a wrong token is refused, the right one leads to what was wanted"(page) {
    await page.goto(`${base}/audit`);
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await isForEverybody(page, "sign-in");
    await signIn(page, "wrong");
    await page.getByRole("alert").getByText("not known").waitFor();
    await signIn(page, "all-of-it");
    await page.getByRole("heading", { name: "Audit" }).waitFor();
    await page.getByRole("link", { name: "Overview" }).click();
    await says(page, "flowing");
    await page.locator("#live[data-state=on]").waitFor();
    await page.locator(".chart path").first().waitFor({ state: "attached" });
    await page.locator(".lanes .busy").first().waitFor();
    await isForEverybody(page, "overview");
  },

  async "a failure appears by itself, is opened, mended, replayed, and flows"(page) {
    const event = await stage("fail");
    await says(page, "failing");
    await picture(page, "overview-light");
    await picture(page, "overview-dark", { colorScheme: "dark" });
    await picture(page, "overview-phone", { viewport: PHONE });
    await isForEverybody(page, "overview with a failure");
    await page.locator("a.cause").first().click();
    await page.getByRole("link", { name: "Replay 1 event" }).waitFor();
    await isForEverybody(page, "cause");
    await page.getByRole("link", { name: event, exact: true }).click();
    await page.getByRole("heading", { name: `Event ${event}` }).waitFor();
    await page.getByText("name is for the relay to guess").first().waitFor();
    await page.getByRole("heading", { name: "Held behind it" }).waitFor();
    await page.locator("pre.json", { hasText: '"version": 1' }).waitFor();
    await picture(page, "failure");
    await isForEverybody(page, "event");
    await stage("mend");
    await page.getByRole("link", { name: "Replay", exact: true }).click();
    await isForEverybody(page, "question");
    await picture(page, "replay");
    const button = page.getByRole("button", { name: "Replay 1 event" });
    await button.click();
    assert.ok(page.url().endsWith("/replay"), "a reason is needed");
    await page.getByLabel("Why").fill("the rule was dropped");
    await button.click();
    await page.getByText("1 event replayed.").waitFor();
    await page.locator("h1 .badge", { hasText: "processed" }).waitFor();
  },

  async "the number that was agreed to protects"(page) {
    await stage("break 3");
    await page.getByRole("link", { name: "Failures", exact: true }).click();
    await page.locator(".cause .count", { hasText: /^3$/ }).click();
    await page.getByRole("link", { name: "Skip 3 events" }).click();
    await page.getByLabel("Why").fill("test data");
    await stage("break 1");
    await page.getByRole("button", { name: "Skip 3 events" }).click();
    await page.getByText("there were 3 when you were asked, and there are 4 now").waitFor();
    await page.getByRole("button", { name: "Skip 4 events" }).click();
    await page.getByText("4 events skipped.").waitFor();
    await page.getByText("Nothing fails.").first().waitFor();
    await stage("mend");
  },

  async "what is paused says so, and flows again"(page) {
    await page.getByRole("link", { name: "Overview" }).click();
    await page.getByRole("link", { name: "Pause User" }).click();
    await page.getByLabel("Why").fill("the table is moved");
    await page.getByRole("button", { name: "Pause User" }).click();
    await page.getByText("Paused. No batch of it is in flight any more.").waitFor();
    await says(page, "paused");
    await page.locator(".health .said", { hasText: "the table is moved" }).waitFor();
    await isForEverybody(page, "paused");
    await page.locator(".health").getByRole("link", { name: "Resume User" }).click();
    await page.getByLabel("Why").fill("done");
    await page.getByRole("button", { name: "Resume User" }).click();
    await says(page, "flowing");
  },

  async "a database that goes away is told of, and so is its return"(page) {
    await stage("new away");
    await says(page, "target-away");
    await isForEverybody(page, "database away");
    await picture(page, "database-away");
    await stage("new back");
    await says(page, "flowing");
  },

  async "an aggregate's events are found, and everything done is in the audit trail"(page) {
    await page.getByRole("link", { name: "Events", exact: true }).click();
    await page.getByLabel("Aggregate type").fill("User");
    await page.getByLabel("Aggregate id").fill("4711");
    await page.getByRole("button", { name: "Search" }).click();
    await page.locator("table.events tbody tr").nth(1).waitFor();
    await isForEverybody(page, "events");
    await page.getByRole("link", { name: "Audit" }).click();
    for (const why of ["the rule was dropped", "test data", "the table is moved"]) await page.getByText(why).waitFor();
    await isForEverybody(page, "audit");
    await page.getByRole("link", { name: "Check" }).click();
    await page.getByRole("link", { name: "Check again" }).waitFor();
    await isForEverybody(page, "check");
    await picture(page, "check");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
  },

  async "a token that may read has nothing to press"(page) {
    await page.goto(`${base}/`);
    await signIn(page, "only-look");
    await says(page, "flowing");
    assert.equal(await page.getByRole("link", { name: /Pause|Resume|Replay/ }).count(), 0);
    await page.goto(`${base}/pause`);
    await page.getByText("You may look, not change").waitFor();
    await page.getByRole("button", { name: "Sign out" }).click();
  },

  async "the keyboard reaches everything, and the first stop skips the menu"(page) {
    await signIn(page, "all-of-it");
    await says(page, "flowing");
    await page.reload();
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
    assert.ok(await page.evaluate(() => document.querySelector("main").contains(document.activeElement)));
  },
};

const page = await open();
for (const [name, scene] of Object.entries(scenes)) {
  const started = Date.now();
  try {
    await scene(page);
  } catch (error) {
    console.error(`${name}: ${error.stack}\nat ${page.url()}\n${await page.locator("body").innerText().catch(() => "")}`);
    process.exit(1);
  }
  assert.deepEqual(faults, [], name);
  console.log(`ok ${name} (${Date.now() - started} ms)`);
}

// Without a script: everything can be read, and done.
const plain = await open({ javaScriptEnabled: false });
await plain.goto(`${base}/`);
await signIn(plain, "all-of-it");
await says(plain, "flowing");
await plain.getByRole("link", { name: "Pause everything" }).click();
await plain.getByLabel("Why").fill("without a script");
await plain.getByRole("button", { name: "Pause everything" }).click();
await says(plain, "paused");
await plain.getByRole("link", { name: "Resume everything" }).click();
await plain.getByLabel("Why").fill("without a script");
await plain.getByRole("button", { name: "Resume everything" }).click();
await plain.getByText("Resumed.").waitFor();
assert.deepEqual(faults, []);
console.log("ok without a script");
await browser.close();
console.log("DONE");
process.exit(0);
