// What every scenario sends, with what each answer must be; only how much of it and when is theirs.
import http from 'k6/http';
import { check, sleep } from 'k6';

const SMALL = 'x'.repeat(1024);
const LARGE = 'x'.repeat(100 * 1024);
const SENT = 'y'.repeat(10 * 1024);
const BEARER = { headers: { Authorization: `Bearer ${__ENV.TOKEN}` } };
const FORGED = {
  headers: { Authorization: `Bearer ${__ENV.TOKEN.slice(0, -6)}AAAAAA` },
  responseCallback: http.expectedStatuses(401),
};

const is = (body) => ({ 'is 200': (answer) => answer.status === 200, 'has its body': (answer) => answer.body === body });

const KINDS = [
  () => check(http.get(`${__ENV.HTTP}/1k`), is(SMALL)),
  () => check(http.get(`${__ENV.HTTP}/filters/1k`), {
    ...is(SMALL),
    'went through the filters': (answer) => answer.headers['X-Generation'] !== undefined,
  }),
  () => check(http.get(`${__ENV.HTTP}/100k`), is(LARGE)),
  () => check(http.post(`${__ENV.HTTP}/echo`, SENT), is(SENT)),
  () => check(http.get(`${__ENV.HTTPS}/1k`), {
    ...is(SMALL),
    'came over HTTP/2': (answer) => answer.proto === 'HTTP/2.0',
  }),
  () => check(http.post(`${__ENV.HTTPS}/echo`, SENT), is(SENT)),
  () => check(http.get(`${__ENV.HTTP}/full/1k`), is(SMALL)),
  () => check(http.post(`${__ENV.HTTP}/held/echo`, SENT), is(SENT)),
  () => check(http.get(`${__ENV.HTTP}/pieces/1k`), is(SMALL)),
  () => check(http.get(`${__ENV.HTTP}/jwt/1k`, BEARER), is(SMALL)),
  () => check(http.get(`${__ENV.HTTP}/jwt/1k`, FORGED), {
    'is 401': (answer) => answer.status === 401,
    'says how to prove who calls': (answer) => answer.headers['Www-Authenticate'] !== undefined,
  }),
];

export const RATE = Number(__ENV.RATE);
export const SECONDS = Number(__ENV.SECONDS);

// Requests that come whether or not those before were answered, as those of strangers do.
export function options(scenario) {
  return {
    scenarios: { load: { preAllocatedVUs: 100, maxVUs: 500, gracefulStop: '10s', ...scenario } },
    insecureSkipTLSVerify: true,
    summaryTrendStats: ['med', 'p(90)', 'p(99)', 'max'],
    thresholds: {
      checks: ['rate==1'],
      http_req_failed: ['rate==0'],
      http_req_duration: [`p(99)<${__ENV.P99_MS}`],
      // Requests that could not be sent because hundreds were waiting.
      dropped_iterations: [`count<=${__ENV.DROPPED}`],
    },
  };
}

export const constant = () => options({ executor: 'constant-arrival-rate', rate: RATE, duration: `${SECONDS}s` });

export default function one() {
  KINDS[(__VU + __ITER) % KINDS.length]();
  // A client that is not at once there for the next request: so many connections are open.
  sleep(0.1);
}
