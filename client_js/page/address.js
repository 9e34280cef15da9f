/** Where this page's server has its WebSocket. */
export function serverAddress() {
  const address = new URL("/ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}
