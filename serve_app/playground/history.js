const STORE = "runs";
const MAX_RUNS = 40;
const MAX_BYTES = 200e6;

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("camera-edit", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const bytesOf = (record) => [...record.inputs, ...record.outputs].reduce((sum, each) => sum + (each?.blob.size ?? 0), 0);

/** The records of edits in this browser, oldest first. Where it keeps none (a private window), they last as long as
 *  the page. */
export class History {
  constructor() {
    this.database = opened().catch(() => null);
    this.records = new Map();
  }

  async load() {
    for (const record of (await this.store("readonly", (store) => store.getAll())) ?? []) this.records.set(record.id, record);
    return [...this.records.values()];
  }

  /** Keep a record, and drop the oldest ones beyond the bounds. Returns the ids of those that were dropped. */
  async save(record) {
    this.records.set(record.id, record);
    await this.store("readwrite", (store) => store.put(record));
    const dropped = [];
    let bytes = [...this.records.values()].reduce((sum, each) => sum + bytesOf(each), 0);
    for (const [id, each] of this.records) {
      if ((this.records.size <= MAX_RUNS && bytes <= MAX_BYTES) || id === record.id) break;
      bytes -= bytesOf(each);
      this.records.delete(id);
      dropped.push(id);
      await this.store("readwrite", (store) => store.delete(id));
    }
    return dropped;
  }

  async remove(id) {
    this.records.delete(id);
    await this.store("readwrite", (store) => store.delete(id));
  }

  async clear() {
    this.records.clear();
    await this.store("readwrite", (store) => store.clear());
  }

  async store(mode, work) {
    const database = await this.database;
    if (database === null) return null;
    return new Promise((resolve) => {
      const request = work(database.transaction(STORE, mode).objectStore(STORE));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    });
  }
}
