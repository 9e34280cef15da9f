/* How numbers and times are written. */

export const dateTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const timeOfDay = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const whole = new Intl.NumberFormat();

export const number = (value) => whole.format(value);

export function bytes(count) {
  if (count < 10_000) return `${number(count)} bytes`;
  const power = count < 10_000_000 ? 1 : 2;
  return `${(count / 1000 ** power).toFixed(1)} ${["", "kB", "MB"][power]}`;
}

export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60_000)} min`;
}
