// A provider of OpenID Connect on loopback, for the tests: oidc-provider, certified by the OpenID Foundation.
//
//   node provider.mjs MODULES      MODULES holds what package-lock.json lists
//
// It says where it is as one line of JSON, and then answers each line that it reads:
//
//   rotate     signs with a new key; its set has the last one as well
//   stop       closes its listener and all connections
//   start      listens there again
//   web JSON   users log in with a client `web`: for how long its tokens hold, and where it is told of logouts
//   requests   how often its documents, keys and introspection were asked for

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// What the library remarks about settings that are for tests is no line of ours.
console.info = console.log = console.warn = () => {};

const modules = createRequire(join(process.argv[2], 'package.json'));
const { default: Provider } = await import(pathToFileURL(modules.resolve('oidc-provider')));

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const grants = {
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  id_token_signed_response_alg: 'ES256',
};
const secret = 'a secret of at least thirty-two characters';

let web = { ttl: 300 };
const users = () => ({
  client_id: 'web',
  client_secret: secret,
  grant_types: ['authorization_code', 'refresh_token'],
  redirect_uris: ['https://app.test/oauth2/callback'],
  post_logout_redirect_uris: ['https://app.test/bye'],
  id_token_signed_response_alg: 'ES256',
  ...(web.backchannel
    ? { backchannel_logout_uri: web.backchannel, backchannel_logout_session_required: web.sid ?? true }
    : {}),
});

let made = 0;
function key() {
  made += 1;
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: `key-${made}`, alg: 'ES256', use: 'sig' };
}

function provider(issuer, keys) {
  const resource = (format) => ({
    scope: 'read',
    audience: 'api',
    accessTokenTTL: 300,
    accessTokenFormat: format,
    jwt: { sign: { alg: 'ES256' } },
  });
  return new Provider(issuer, {
    clients: [
      { client_id: 'caller', client_secret: secret, ...grants },
      { client_id: 'gateway', client_secret: secret, ...grants },
      users(),
    ],
    cookies: { keys: ['of the tests'] },
    issueRefreshToken: async (ctx, client) => client.grantTypeAllowed('refresh_token'),
    ttl: { AccessToken: () => web.ttl, IdToken: 300, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 600 },
    jwks: { keys },
    features: {
      // Its real pages: forms to log in, to agree and to log out.
      devInteractions: { enabled: true },
      backchannelLogout: { enabled: true },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: (ctx, client) => client.clientId === 'gateway' },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, indicator) => resource(indicator.endsWith(':jwt') ? 'jwt' : 'opaque'),
      },
    },
  });
}

const requests = {};
let current;
const server = createServer((request, response) => {
  const path = request.url.split('?')[0];
  requests[path] = (requests[path] ?? 0) + 1;
  current(request, response);
});
const listen = (port) => new Promise((listening) => server.listen(port, '127.0.0.1', listening));

await listen(0);
const { port } = server.address();
const issuer = `http://127.0.0.1:${port}`;
let keys = [key()];
current = provider(issuer, keys).callback();
say({ issuer, kid: keys[0].kid });

for await (const line of createInterface({ input: process.stdin })) {
  if (line.startsWith('web ')) {
    web = JSON.parse(line.slice(4));
    current = provider(issuer, keys).callback();
    say({ web });
    continue;
  }
  switch (line) {
    case 'rotate':
      keys = [key(), keys[0]];
      current = provider(issuer, keys).callback();
      say({ rotated: keys[0].kid });
      break;
    case 'stop':
      await new Promise((closed) => {
        server.close(closed);
        server.closeAllConnections();
      });
      say({ stopped: true });
      break;
    case 'start':
      await listen(port);
      say({ started: true });
      break;
    case 'requests':
      say({ requests });
      break;
    default:
      say({ unknown: line });
  }
}
