// The same load all the time.
import one, { constant } from './common.js';

export const options = constant();
export default one;
