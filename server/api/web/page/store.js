/** What the browser keeps, for this address or for this tab. Where it refuses both, the page itself keeps it. */

class Memory {
  constructor() {
    this.values = new Map();
  }

  getItem(key) {
    return this.values.get(key) ?? null;
  }

  setItem(key, value) {
    this.values.set(key, value);
  }

  removeItem(key) {
    this.values.delete(key);
  }
}

/** Browsers that block cookies of a site throw where its storage is asked for. */
function storage(name) {
  try {
    return globalThis[name];
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
    return new Memory();
  }
}

export const kept = storage("localStorage");
export const keptForTab = storage("sessionStorage");
