// A real browser with a virtual authenticator enrols a passkey and signs in with it, over JSON and over
// gRPC, from pages of two origins; and what it must not get in with is refused.
//
// Usage: node passkeys.mjs URL PAGE_A PAGE_B PAGE_C. The server is at URL and knows the origins A and B,
// not C; in the current folder is its `accountd-data`. Needs `puppeteer-core`, Chromium and grpcurl.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import puppeteer from "puppeteer-core";

const [, , url, ...origins] = process.argv;
const [pageA, pageB, pageC] = origins;

async function json(path, body, token) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json();
  return response.ok ? answer : { refused: answer.error.details[0].reason };
}

function grpc(method, body) {
  const address = new URL(url).host;
  const args = ["-plaintext", "-d", JSON.stringify(body), address, `accountd.v1.${method}`];
  return JSON.parse(execFileSync("grpcurl", args, { encoding: "utf8" }));
}

/// What an access token says.
const claims = (answer) => JSON.parse(Buffer.from(answer.tokens.accessToken.split(".")[1], "base64url"));

const servers = origins.map((origin) => {
  const page = createServer((_, response) => {
    response.setHeader("content-type", "text/html");
    response.end("<!doctype html><title>Sign in</title><input autocomplete='username webauthn'>");
  });
  return page.listen(new URL(origin).port, "localhost");
});
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
try {
  // A person with a password.
  const { client_id: id, client_secret: secret } = JSON.parse(readFileSync("accountd-data/bootstrap.json"));
  const operator = await json("/v1/tokens:issue", { clientId: id, clientSecret: secret });
  const password = "seven quiet otters";
  const user = await json("/v1/users", { user: { username: "pia" }, password }, operator.accessToken);
  const signedIn = await json("/v1/sessions", { identifier: "pia", password });
  const token = signedIn.tokens.accessToken;
  assert.equal(claims(signedIn).acr, "aal1");

  const page = await browser.newPage();
  const devtools = await page.createCDPSession();
  await devtools.send("WebAuthn.enable");
  const { authenticatorId } = await devtools.send("WebAuthn.addVirtualAuthenticator", {
    options: {
      protocol: "ctap2",
      transport: "internal",
      hasResidentKey: true,
      hasUserVerification: true,
      isUserVerified: true,
      automaticPresenceSimulation: true,
    },
  });
  const create = (options) =>
    page.evaluate(async (text) => {
      const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(JSON.parse(text));
      return JSON.stringify(await navigator.credentials.create({ publicKey }));
    }, options);
  const get = (options, change = {}, mediation = "optional") =>
    page.evaluate(
      async (text, change, mediation) => {
        const json = { ...JSON.parse(text), ...change };
        const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(json);
        return JSON.stringify(await navigator.credentials.get({ publicKey, mediation }));
      },
      options,
      change,
      mediation,
    );
  const ask = () => json("/v1/challenges", { method: "PASSKEY" });
  const answer = ({ name }, passkeyResponseJson) => json(`/v1/${name}:answer`, { passkeyResponseJson });

  await page.goto(pageA);
  const made = await json("/v1/users/me/credentials", { credential: { passkey: {}, label: "virtual" } }, token);
  const created = await create(made.enrolment.passkey.optionsJson);
  const confirmed = await json(
    `/v1/${made.credential.name}:confirm`,
    { passkeyResponseJson: created },
    token,
  );
  assert.equal(confirmed.state, "ACTIVE");
  console.log("enrolled over JSON:", confirmed.passkey.aaguid);
  const { credentials } = await devtools.send("WebAuthn.getCredentials", { authenticatorId });
  assert.equal(credentials[0].isResidentCredential, true, "can be found without a name");

  let asked = await ask();
  const first = await get(asked.passkeyOptionsJson);
  const overJson = await answer(asked, first);
  assert.deepEqual(claims(overJson).amr, ["pop", "user", "mfa"]);
  assert.equal(`users/${claims(overJson).sub}`, user.name);
  console.log("signed in over JSON, from", pageA);

  await page.goto(pageB);
  asked = grpc("SessionService/CreateChallenge", { method: "PASSKEY" });
  const response = await get(asked.passkeyOptionsJson, {}, "conditional");
  const overGrpc = grpc("SessionService/AnswerChallenge", { name: asked.name, passkeyResponseJson: response });
  assert.equal(claims(overGrpc).acr, "aal2");
  console.log("signed in over gRPC, offered by autofill, from", pageB);

  const second = await json("/v1/sessions", { identifier: "pia", password });
  assert.deepEqual(second.challenge.methods, ["PASSKEY"]);
  const both = await answer(second.challenge, await get(second.challenge.passkeyOptionsJson));
  assert.deepEqual(claims(both).amr, ["pwd", "pop", "user", "mfa"]);
  console.log("signed in with password and passkey");

  assert.equal((await answer(asked, response)).refused, "CHALLENGE_ENDED");
  asked = await ask();
  assert.equal((await answer(asked, response)).refused, "INVALID_CODE");
  console.log("refused: an assertion that was used, an assertion to another challenge");

  asked = await ask();
  await devtools.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: false });
  const unverified = await get(asked.passkeyOptionsJson, { userVerification: "discouraged" });
  assert.equal((await answer(asked, unverified)).refused, "INVALID_CODE");
  await devtools.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified: true });
  console.log("refused: nobody verified, because the page did not ask for it");

  await page.goto(pageC);
  asked = await ask();
  assert.equal((await answer(asked, await get(asked.passkeyOptionsJson))).refused, "INVALID_CODE");
  console.log("refused: from", pageC, "which is not ours");

  await page.goto(pageA);
  asked = await ask();
  assert.ok((await answer(asked, await get(asked.passkeyOptionsJson))).tokens, "still good");
} finally {
  await browser.close();
  for (const server of servers) server.close();
}
