// Five times the load at once, for a fifth of the time, and back.
import one, { RATE, SECONDS, options as load } from './common.js';

const stage = (share, target) => ({ duration: `${Math.max(SECONDS * share, 0.1)}s`, target });

export const options = load({
  executor: 'ramping-arrival-rate',
  startRate: RATE,
  preAllocatedVUs: Math.max(100, RATE),
  stages: [stage(0.4, RATE), stage(0, RATE * 5), stage(0.2, RATE * 5), stage(0, RATE), stage(0.4, RATE)],
});
export default one;
