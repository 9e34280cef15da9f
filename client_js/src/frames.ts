// Made from spec/schema by `npm run types`; do not change by hand.

import type { Json } from "./values.js";

/** The op is in the synced log. `ops` is there when the effects differ from what was asked. */
export interface Ack {
  type: "ack";
  op: number;
  version: Version;
  durable: "fsync" | "memory";
  id?: number | null;
  chat?: string;
  owner?: OwnerName;
  messages?: string[];
  namespace?: string;
  chat_id?: string;
  branch?: NewChat;
  restored?: Restored;
  linked_from?: string[];
  generation?: string;
  message?: string;
  state?: string;
  stored?: boolean;
  ops?: (AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect | StateEffect | FloorEffect | RenamedEffect | DeletedEffect)[];
  rebased?: boolean;
  duplicate?: boolean;
  resync?: boolean;
}

/** The chat that was last worked on with a character or in a group; `chat` sets it. */
export interface ActiveChat {
  type: "active-chat";
  character?: string;
  group?: string;
  chat?: string | null;
  id?: number | null;
}

/** The active chat; null when there is none. */
export interface ActiveChatFrame {
  type: "active-chat";
  chat: string | null;
  chat_id: string | null;
  character?: string;
  group?: string;
  id?: number | null;
}

/** Messages to put at the end. */
export interface Append {
  type: "append";
  chat: string;
  messages: (Record<string, Json>)[];
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** Messages, each with its id, at the end. */
export interface AppendEffect {
  op: "append";
  messages: (Record<string, Json>)[];
}

/** A fresh token for the same user, before the old one expires. */
export interface Auth {
  type: "auth";
  token: string;
  id?: number | null;
}

/** Who made a commit: `session` and number of the op. */
export interface Author {
  session: string;
  op: number;
}

/** A chat that has backups. */
export interface BackedUpChat {
  chat_id: string;
  backups: number;
  size_bytes: number;
  last: ListedBackup;
}

/** A backup of a chat as it is now. */
export interface BackupCreate {
  type: "backup-create";
  chat: string;
  id?: number | null;
}

/** The backup that holds the chat as it is; not `is_new` when there was one already. */
export interface BackupCreated {
  type: "backup-created";
  chat_id: string;
  backup: ListedBackup;
  is_new: boolean;
  id?: number | null;
}

/** A page of what a backup holds: first the metadata and states, then messages in their order. */
export interface BackupFrame {
  type: "backup";
  chat_id: string;
  backup: ListedBackup;
  cursor: string | null;
  metadata?: Record<string, Json>;
  states?: Record<string, Json>;
  first?: number;
  messages?: (Record<string, Json>)[];
  damaged?: number;
  id?: number | null;
}

/** What a backup holds, a page at a time. */
export interface BackupGet {
  type: "backup-get";
  chat: string;
  backup?: string;
  cursor?: string | null;
  id?: number | null;
}

/** The backups of a chat, also of one in the trash; without `chat` the chats that have some. */
export interface BackupList {
  type: "backup-list";
  chat?: string;
  id?: number | null;
}

/** The backups of the chat that was asked for, the one taken last first; or the chats that have some. */
export interface BackupListFrame {
  type: "backup-list";
  chat_id?: string;
  backups?: ListedBackup[];
  chats?: BackedUpChat[];
  id?: number | null;
}

/** Put a chat back as a backup holds it, byte for byte; of a chat in the trash, out of it. With `to` beside a chat that is there: a new chat of that name, and the chat itself stays as it is. Only when the chat itself is replaced a base is needed. */
export interface BackupRestore {
  type: "backup-restore";
  chat: string;
  backup: string;
  to?: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
}

/** Requests to one chat, carried out in order, all or nothing, as one commit. Each request has a `base` of its own or takes the batch's; bases are compared before the first request is carried out. */
export interface Batch {
  type: "batch";
  chat: string;
  requests: (BatchedAppend | BatchedPatch | BatchedDelete | BatchedMetadataUpdate | BatchedStateUpdate | BatchedStateDelete | BatchedSwipe | BatchedFloorUpdate)[];
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

export interface BatchedAppend {
  type: "append";
  messages: (Record<string, Json>)[];
  base?: string | OpBase | null;
}

export interface BatchedDelete {
  type: "delete";
  messages: string[];
  base?: string | OpBase | null;
}

export interface BatchedFloorUpdate {
  type: "floor-update";
  namespace: string;
  patch: (Record<string, Json>)[];
  at?: FloorTarget;
  base?: string | OpBase | null;
}

export interface BatchedMetadataUpdate {
  type: "metadata-update";
  set?: Record<string, Json>;
  merge?: Record<string, Json>;
  patch?: (Record<string, Json>)[];
  base?: string | OpBase | null;
}

export interface BatchedPatch {
  type: "patch";
  patch: (Record<string, Json>)[];
  message?: string;
  base?: string | OpBase | null;
}

export interface BatchedStateDelete {
  type: "state-delete";
  namespace: string;
  base?: string | OpBase | null;
}

export interface BatchedStateUpdate {
  type: "state-update";
  namespace: string;
  set?: Json;
  merge?: Record<string, Json>;
  patch?: (Record<string, Json>)[];
  base?: string | OpBase | null;
}

export interface BatchedSwipe {
  type: "swipe";
  message: string;
  action: "add" | "delete" | "select";
  swipe?: number;
  content?: Record<string, Json>;
  select?: boolean;
  base?: string | OpBase | null;
}

/** This tab was too slow: it last got `from`, the stream is at `to`. Open again with `since` = `from`. */
export interface Behind {
  type: "behind";
  from: Version;
  to: Version;
  chat?: string;
  owner?: OwnerName;
}

/** A character: its card is `<avatar>` in the folder of characters. */
export interface Character {
  character: string;
  name: string;
  avatar: string;
  chat: string | null;
  chats: number;
}

/** A page of the user's characters, in the order of their names. */
export interface CharacterList {
  type: "character-list";
  limit?: number;
  cursor?: string | null;
  id?: number | null;
}

/** A page; `cursor` asks for the next one, null when there is none. */
export interface CharacterListFrame {
  type: "character-list";
  characters: Character[];
  cursor: string | null;
  total: number;
  id?: number | null;
}

/** A new chat that holds everything up to and with `message`; the message keeps a link to it. */
export interface ChatBranch {
  type: "chat-branch";
  chat: string;
  message: string;
  to?: string;
  kind?: "branch" | "checkpoint";
  swipe?: number;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** A chat that does not exist yet, with what it begins with. Its op is the first of this session on it. */
export interface ChatCreate {
  type: "chat-create";
  chat: string;
  metadata?: Record<string, Json>;
  messages?: (Record<string, Json>)[];
  group?: string;
  id?: number | null;
  op?: number;
}

/** To the trash, with everything the chat owns. */
export interface ChatDelete {
  type: "chat-delete";
  chat: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
}

/** A page of the user's chats, the one changed last first. */
export interface ChatList {
  type: "chat-list";
  character?: string;
  group?: string;
  deleted?: boolean;
  limit?: number;
  cursor?: string | null;
  id?: number | null;
}

/** A page; `cursor` asks for the next one, null when there is none. */
export interface ChatListFrame {
  type: "chat-list";
  chats: ListedChat[];
  cursor: string | null;
  total: number;
  id?: number | null;
}

/** Another name in the same folder; sidecars and open tabs follow. */
export interface ChatRename {
  type: "chat-rename";
  chat: string;
  to: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
}

/** What can be done about a damaged chat; with `apply`, do it. Every file is kept as it was. */
export interface ChatRepair {
  type: "chat-repair";
  chat: string;
  apply?: boolean;
  id?: number | null;
}

/** What was found, what a repair does, and what stays as it is. */
export interface ChatRepairFrame {
  type: "chat-repair";
  chat_id: string;
  findings: FoundDamage[];
  repairs: PlannedRepair[];
  left: FoundDamage[];
  done?: boolean;
  kept?: string[];
  id?: number | null;
}

/** Out of the trash; `chat` is `id:<chat_id>`. */
export interface ChatRestore {
  type: "chat-restore";
  chat: string;
  to?: string;
  id?: number | null;
  op?: number;
}

/** Messages that hold every word of `query`, whatever its case. */
export interface ChatSearch {
  type: "chat-search";
  query: string;
  character?: string;
  group?: string;
  limit?: number;
  cursor?: string | null;
  id?: number | null;
}

/** A page of what was found; a page may be short or empty and still have a `cursor`. */
export interface ChatSearchFrame {
  type: "chat-search";
  found: FoundMessage[];
  cursor: string | null;
  searched: number;
  id?: number | null;
}

/** End a subscription. */
export interface Close {
  type: "close";
  chat?: string;
  owner?: OwnerName;
  id?: number | null;
}

export interface Closed {
  type: "closed";
  chat?: string;
  id?: number | null;
  owner?: OwnerName;
}

/** The base is not the document's version. `missed` leads from the base to `version`, or `resync` is true. `version` is null when the state document never existed. */
export interface Conflict {
  type: "conflict";
  op: number;
  version: Version | null;
  id?: number | null;
  chat?: string;
  owner?: OwnerName;
  namespace?: string;
  missed?: IntegrityFrame[];
  resync?: boolean;
  duplicate?: boolean;
}

/** One connection of the user. */
export interface ConnectionStatus {
  session: string;
  address: string;
  connected_ms: number;
  client?: string;
  open?: number;
  names?: string[];
  producing?: number;
  in_flight?: number;
  waiting_bytes?: number;
  slow?: boolean;
  behind?: number;
}

/** A line of a chat's file that is no message; its bytes are kept. */
export interface Damage {
  line: number;
  problem: string;
}

/** Messages to take out, by id; an id named twice counts once. */
export interface Delete {
  type: "delete";
  chat: string;
  messages: string[];
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** Messages that are gone, by id. */
export interface DeleteEffect {
  op: "delete";
  messages: string[];
}

/** The owner is in the trash; nothing more comes of it. */
export interface DeletedEffect {
  op: "deleted";
}

export interface Error {
  type: "error";
  code: string;
  message: string;
  retry: "after-auth" | "after-sync" | "backoff" | "never" | "now";
  id?: number | null;
  op?: number;
  chat?: string;
  owner?: OwnerName;
  pointer?: string;
  expected?: number;
  to?: string;
  chat_id?: string;
  generation?: string;
  state?: string;
  next_op?: number;
  after_ms?: number;
  duplicate?: boolean;
}

/** Bytes from `offset` on. When `file` is another one than that of the first piece, it was changed meanwhile. */
export interface FileFrame {
  type: "file";
  file: ListedFile;
  offset: number;
  data: string;
  id?: number | null;
}

/** A piece of one of them. */
export interface FileGet {
  type: "file-get";
  path: string;
  offset?: number;
  id?: number | null;
}

/** A page of the user's cards, files of groups and presets, in the order of their paths. */
export interface FileList {
  type: "file-list";
  limit?: number;
  cursor?: string | null;
  id?: number | null;
}

/** `cursor` null: that was the last page. */
export interface FileListFrame {
  type: "file-list";
  files: ListedFile[];
  cursor: string | null;
  id?: number | null;
}

/** A commit that stands in a floor state's log from here on: at the end, or behind `after` (null: first). */
export interface FloorCommitAdded {
  commit: Json;
  after?: string | null;
}

/** A floor state: its document as in `state`, and what happened to its log `<namespace>__floor_log`, which has the same version. */
export interface FloorEffect {
  op: "floor";
  namespace: string;
  version: Version;
  previous: string | null;
  data?: Json;
  patch?: (Record<string, Json>)[];
  deleted?: boolean;
  skipped?: SkippedCommit[];
  log?: FloorLogChange;
}

/** What happened to a floor state's log; in the server's own log only. Commits are named by id. */
export interface FloorLogChange {
  add?: FloorCommitAdded[];
  remove?: string[];
  swipes?: Record<string, number>;
  reset?: boolean;
}

/** What a floor commit belongs to: a message by id or by index, and one of its swipes (the one shown). */
export interface FloorTarget {
  message?: string;
  floor?: number;
  swipe?: number;
}

/** RFC 6902 from the floor state as it is read now; kept with the message and swipe that it belongs to. Without `at` that is the last message and the swipe it shows. */
export interface FloorUpdate {
  type: "floor-update";
  chat: string;
  namespace: string;
  patch: (Record<string, Json>)[];
  at?: FloorTarget;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** Something that is wrong with a file. */
export interface FoundDamage {
  code: string;
  severity: string;
  path: string;
  message: string;
  remedy: string;
  line?: number;
  count?: number;
}

/** A message that holds every word that was searched for, or a chat whose name does. */
export interface FoundMessage {
  chat: string;
  snippet: string;
  ranges: ([number, number])[];
  message?: string;
  index?: number;
}

/** As `generation-start`; the server produces the text from a model. */
export interface Generate {
  type: "generate";
  chat: string;
  generation: string;
  upstream: string;
  body: Record<string, Json>;
  messages?: (Record<string, Json>)[];
  target?: GenerationTarget;
  reply?: Record<string, Json>;
  supersedes?: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** This session holds the result, at the version with this integrity. */
export interface GenerationAck {
  type: "generation-ack";
  chat: string;
  generation: string;
  integrity: string;
  id?: number | null;
}

/** Hear the text so far, and then what comes; the chat must be open. */
export interface GenerationAttach {
  type: "generation-attach";
  chat: string;
  generation: string;
  salvage?: Salvage;
  id?: number | null;
}

/** Stop, from any tab: what there is of the text is stored. */
export interface GenerationCancel {
  type: "generation-cancel";
  chat: string;
  generation: string;
  id?: number | null;
  op?: number;
}

/** Text of a generation from `offset` on; what overlaps the text there is must be equal to it. */
export interface GenerationDelta {
  type: "generation-delta";
  chat: string;
  generation: string;
  offset?: number;
  text?: string;
  reasoning_offset?: number;
  reasoning?: string;
  id?: number | null;
}

/** More text. To the session that produces it: how much is durable, with an empty text. */
export interface GenerationDeltaFrame {
  type: "generation-delta";
  chat: string;
  generation: string;
  offset: number;
  text: string;
  durable: number;
  reasoning_offset?: number;
  reasoning?: string;
  reasoning_durable?: number;
}

/** A generation has ended and left no text. */
export interface GenerationDone {
  type: "generation-done";
  chat: string;
  generation: string;
  state: "cancelled" | "failed" | "orphaned" | "stored";
  version: Version;
  error?: GenerationError;
  id?: number | null;
}

/** The text is complete: store it. With `error` it failed, and what there is of it is stored. */
export interface GenerationEnd {
  type: "generation-end";
  chat: string;
  generation: string;
  reply?: Record<string, Json>;
  length?: number;
  reasoning_length?: number;
  error?: GenerationError;
  id?: number | null;
  op?: number;
}

/** Why a generation failed, in words for people. */
export interface GenerationError {
  code: string;
  message: string;
}

/** Store the user's turn and reserve the place of the reply. The session that starts it produces its text. */
export interface GenerationStart {
  type: "generation-start";
  chat: string;
  generation: string;
  messages?: (Record<string, Json>)[];
  target?: GenerationTarget;
  reply?: Record<string, Json>;
  supersedes?: string;
  lease_s?: number;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** A generation runs; the text so far, after which deltas follow. Also the answer to `generation-attach`. */
export interface GenerationStarted {
  type: "generation-started";
  chat: string;
  generation: string;
  target: GenerationTarget;
  message: string;
  state: "running";
  by: string;
  text: string;
  offset: number;
  durable: number;
  reasoning?: string;
  reasoning_offset?: number;
  supersedes?: string;
  id?: number | null;
}

/** A generation has ended and the chat holds its text, at `version`. */
export interface GenerationStored {
  type: "generation-stored";
  chat: string;
  generation: string;
  message: string;
  state: "cancelled" | "failed" | "orphaned" | "stored";
  version: Version;
  swipe?: number;
  error?: GenerationError;
  id?: number | null;
}

/** Where the reply goes: a message of its own, one more swipe of `message`, or the end of its text. */
export interface GenerationTarget {
  kind?: "continue" | "message" | "swipe";
  message?: string;
}

/** The server stops reading this connection; everything acknowledged is stored. */
export interface Goaway {
  type: "goaway";
  reason: string;
  after_ms?: number;
}

/** A page of the user's groups, in the order of their ids. */
export interface GroupList {
  type: "group-list";
  limit?: number;
  cursor?: string | null;
  id?: number | null;
}

/** A page of groups as their files hold them; `cursor` asks for the next one, null when there is none. */
export interface GroupListFrame {
  type: "group-list";
  groups: (Record<string, Json>)[];
  cursor: string | null;
  total: number;
  id?: number | null;
}

/** The first frame, within 10 s and 8 KiB. */
export interface Hello {
  type: "hello";
  protocol: number;
  session: string;
  token?: string | null;
  client?: string;
}

/** A page of commits with `after` < seq, or the chat as it was `at` a seq. */
export interface History {
  type: "history";
  chat: string;
  after?: number;
  limit?: number;
  at?: number;
  id?: number | null;
}

/** A page: `commits` and `more`; or the chat as it was: `version`, `metadata`, `count` and `messages` or `parts`. */
export interface HistoryFrame {
  type: "history";
  chat: string;
  id?: number | null;
  commits?: IntegrityFrame[];
  more?: boolean;
  version?: Version;
  metadata?: Record<string, Json>;
  count?: number;
  messages?: (Record<string, Json>)[];
  parts?: number;
}

/** Messages of a chat as it was, for the `history` frame with this `id`. */
export interface HistoryPart {
  type: "history-part";
  chat: string;
  part: number;
  of: number;
  messages: (Record<string, Json>)[];
  id?: number | null;
}

/** Messages, each with its id, behind the message `after`; null means at the beginning. */
export interface InsertEffect {
  op: "insert";
  after: string | null;
  messages: (Record<string, Json>)[];
}

/** One commit, told to every other connection that has the owner open; also what a replay sends. */
export interface IntegrityFrame {
  type: "integrity";
  version: Version;
  previous: string;
  ops: (AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect | StateEffect | FloorEffect | RenamedEffect | DeletedEffect)[];
  chat?: string;
  owner?: OwnerName;
  by?: Author | null;
}

/** What the server accepts; sent in `welcome`. */
export interface Limits {
  frame_bytes?: number;
  depth?: number;
  patch_ops?: number;
  document_bytes?: number;
  messages?: number;
  in_flight?: number;
  in_flight_bytes?: number;
  open_chats?: number;
  outcomes?: number;
}

/** A backup, without what it holds. */
export interface ListedBackup {
  backup: string;
  taken_ms: number;
  reason: string;
  size_bytes: number;
  chat?: string;
  version?: Version;
  count?: number;
  namespaces?: string[];
}

/** A chat as the index knows it, without opening it. */
export interface ListedChat {
  chat: string;
  size_bytes: number;
  count: number;
  changed_ms: number;
  preview: string;
  chat_id?: string;
  character?: string;
  group?: string;
  main_chat?: string;
  damaged?: boolean;
  deleted_ms?: number;
  deleted_with?: string;
}

/** One file. */
export interface ListedFile {
  path: string;
  size_bytes: number;
  changed_ms: number;
}

/** A generation as a tab finds it when it opens the chat. */
export interface ListedGeneration {
  id: string;
  target: GenerationTarget;
  message: string;
  state: "cancelled" | "failed" | "orphaned" | "running" | "stored";
  by: string;
  text?: string;
  offset?: number;
  reasoning?: string;
  reasoning_offset?: number;
  durable?: number;
  integrity?: string;
  stored?: boolean;
  error?: GenerationError;
  supersedes?: string;
}

/** The log of the server, whoever writes. */
export interface LogStatus {
  segments: number;
  waiting_bytes: number;
  waiting_answers: number;
  stalled_ms: number;
  checkpoint_lag_ms: number;
  sync_bounds_ms: number[];
  sync_counts: number[];
}

/** RFC 6902 without `test`, relative to the chat's metadata. */
export interface MetadataEffect {
  op: "metadata";
  patch: (Record<string, Json>)[];
}

/** Exactly one of `set` (the whole metadata), `merge` (RFC 7386) and `patch` (RFC 6902). */
export interface MetadataUpdate {
  type: "metadata-update";
  chat: string;
  set?: Record<string, Json>;
  merge?: Record<string, Json>;
  patch?: (Record<string, Json>)[];
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** One that `generate` can ask, as users see it: never where it is, nor its key. */
export interface ModelServer {
  name: string;
}

/** A chat that was made. */
export interface NewChat {
  chat: string;
  chat_id: string;
  version: Version;
}

/** The version that my op number `op` made, so that writes can be pipelined. */
export interface OpBase {
  op: number;
}

/** Subscribe to a chat and everything it owns, or to the state of a character or preset, from `since` on. Exactly one of `chat` and `owner`. */
export interface Open {
  type: "open";
  chat?: string;
  since: Version | null;
  owner?: OwnerName;
  id?: number | null;
  create?: boolean;
  tail?: number;
  header?: boolean;
}

/** `snapshot`: messages here or in the parts; `replay`: integrity frames follow; `current`: nothing was missed. Of a chat: `chat`, `chat_id`, `version`. Of a character or preset: `owner`, `owner_id`, and in a snapshot `states`. */
export interface Opened {
  type: "opened";
  mode: "current" | "replay" | "snapshot";
  head: Version;
  next_op: number;
  chat?: string;
  chat_id?: string;
  version?: Version;
  owner?: OwnerName;
  owner_id?: string;
  states?: Record<string, Version>;
  id?: number | null;
  count?: number;
  first?: number;
  metadata?: Record<string, Json>;
  messages?: (Record<string, Json>)[];
  header?: Record<string, Json>;
  parts?: number;
  reset?: "ahead" | "epoch" | "trimmed";
  created?: boolean;
  read_only?: boolean;
  damage?: Damage[];
  generations?: ListedGeneration[];
}

/** A character or preset with its state to the trash; with `chats` the character's chats too. */
export interface OwnerDelete {
  type: "owner-delete";
  owner: OwnerName;
  chats?: boolean;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
}

/** Exactly one of the three. Characters and presets have state documents only. */
export interface OwnerName {
  chat?: string;
  character?: string;
  preset?: string;
}

/** Another name for a character or preset; state, chats and groups follow. */
export interface OwnerRename {
  type: "owner-rename";
  owner: OwnerName;
  to: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
}

/** Out of the trash: what was deleted last under this name. */
export interface OwnerRestore {
  type: "owner-restore";
  owner: OwnerName;
  id?: number | null;
  op?: number;
}

/** One live owner with its three positions, as numbers of commits. */
export interface OwnerStatus {
  name: string;
  sequenced: number;
  durable: number;
  checkpointed: number;
  connections?: number;
  unfolded_ms?: number;
  read_only?: boolean;
}

/** RFC 6902 against one message, or against `{"metadata": ..., "messages": [...]}` when `message` is left out. */
export interface Patch {
  type: "patch";
  chat: string;
  patch: (Record<string, Json>)[];
  message?: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** RFC 6902 without `test`, relative to one message. */
export interface PatchEffect {
  op: "patch";
  message: string;
  patch: (Record<string, Json>)[];
}

/** Answered with `pong`, ahead of all data. */
export interface Ping {
  type: "ping";
  id?: number | null;
}

/** One file, and what is done to it. */
export interface PlannedRepair {
  path: string;
  actions: string[];
  quarantined?: number;
}

export interface Pong {
  type: "pong";
  id?: number | null;
}

/** The owner has this name from here on, and is there. What came out of the trash has one too. `to` is its one text: as `chat` names it, `character:<character>` or `preset:<folder>/<preset>`. */
export interface RenamedEffect {
  op: "renamed";
  to: string;
}

/** What is open was replaced: open it again with `since` null. */
export interface Reset {
  type: "reset";
  reason: "failed" | "outside-edit" | "restored";
  version: Version;
  chat?: string;
  owner?: OwnerName;
  recovered?: string[];
  kept?: boolean;
}

/** What an ack tells of a restore in place: the chat's version from here on. */
export interface Restored {
  backup: string;
  version: Version;
}

/** Text and reasoning that a tab holds and a crash took from the server. */
export interface Salvage {
  offset: number;
  text: string;
  prefix_sha256: string;
  reasoning_offset?: number;
  reasoning?: string;
  reasoning_prefix_sha256?: string;
}

/** A commit of a floor state that is shown and does not fit; it is kept. `message` is null for the base. */
export interface SkippedCommit {
  commit: string;
  message: string | null;
  swipe: number;
}

export interface SnapshotPart {
  type: "snapshot-part";
  chat: string;
  part: number;
  of: number;
  messages: (Record<string, Json>)[];
}

/** A state document to take away. */
export interface StateDelete {
  type: "state-delete";
  owner: OwnerName;
  namespace: string;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** A state document: exactly one of `data`, `patch`, `deleted`; none of them when the data is too large to travel. `previous` is the integrity of the document before, null when there was none. */
export interface StateEffect {
  op: "state";
  namespace: string;
  version: Version;
  previous: string | null;
  data?: Json;
  patch?: (Record<string, Json>)[];
  deleted?: boolean;
}

export interface StateFrame {
  type: "state";
  owner: OwnerName;
  states: Record<string, StateValue | null>;
  id?: number | null;
}

/** State documents by namespace; all of them when `namespaces` is left out. */
export interface StateGet {
  type: "state-get";
  owner: OwnerName;
  namespaces?: string[];
  id?: number | null;
}

/** Exactly one of `set` (the whole document), `merge` (RFC 7386) and `patch` (RFC 6902). */
export interface StateUpdate {
  type: "state-update";
  owner: OwnerName;
  namespace: string;
  set?: Json;
  merge?: Record<string, Json>;
  patch?: (Record<string, Json>)[];
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** A document, or why it cannot be told: exactly one of `data` and `error`. */
export interface StateValue {
  version?: Version;
  data?: Json;
  error?: "state-corrupt";
  skipped?: SkippedCommit[];
}

/** Connections that read slowly first, then the newest; owners with most outside their files first. */
export interface StatusFrame {
  type: "status";
  connections: ConnectionStatus[];
  connections_total: number;
  owners: OwnerStatus[];
  owners_total: number;
  log: LogStatus;
  id?: number | null;
}

/** How the user's connections and live owners stand now. */
export interface StatusGet {
  type: "status";
  limit?: number;
  id?: number | null;
}

/** Alternatives of one message, by ordinal from 0: put one more behind them, show one, or take one away. */
export interface Swipe {
  type: "swipe";
  chat: string;
  message: string;
  action: "add" | "delete" | "select";
  swipe?: number;
  content?: Record<string, Json>;
  select?: boolean;
  id?: number | null;
  op?: number;
  base?: string | OpBase | null;
  force?: boolean;
  on_conflict?: "rebase" | "refuse";
}

/** What is gone for good. A backup of a chat that was in the trash is still there. */
export interface TrashEmptied {
  type: "trash-emptied";
  entries: string[];
  size_bytes: number;
  id?: number | null;
}

/** Remove entries for good: those named, or those deleted before a moment. Exactly one of the two. */
export interface TrashEmpty {
  type: "trash-empty";
  entries?: string[];
  before_ms?: number;
  id?: number | null;
}

/** One deletion. */
export interface TrashEntry {
  entry: string;
  name: string;
  deleted_ms: number;
  reason: string;
  size_bytes: number;
  files?: string[];
}

/** Everything in the user's trash: chats, characters, presets, and state files whose owner was deleted outside. */
export interface TrashList {
  type: "trash-list";
  id?: number | null;
}

/** The entry made last first. */
export interface TrashListFrame {
  type: "trash-list";
  entries: TrashEntry[];
  id?: number | null;
}

/** Where a document or a stream stands: `epoch` from 1, `seq` from 0, `integrity` a UUID. `seq` 0 means that the document came from a file and this server never changed it. */
export interface Version {
  epoch: number;
  seq: number;
  integrity: string;
}

export interface Welcome {
  type: "welcome";
  protocol: number;
  server: string;
  user: string;
  limits: Limits;
  heartbeat_ms: number;
  id?: number | null;
  upstreams?: ModelServer[];
}

export type ClientFrame = Hello | Auth | Ping | Append | Patch | Delete | MetadataUpdate | StateUpdate | StateDelete | Batch | Swipe | FloorUpdate | ChatCreate | ChatRename | ChatDelete | ChatRestore | ChatBranch | OwnerRename | OwnerDelete | OwnerRestore | BackupRestore | GenerationStart | GenerationEnd | GenerationCancel | Generate | Open | Close | StateGet | History | GenerationDelta | GenerationAttach | GenerationAck | ChatList | ChatSearch | ActiveChat | CharacterList | GroupList | BackupList | BackupCreate | BackupGet | TrashList | TrashEmpty | ChatRepair | StatusGet | FileList | FileGet;
export type ServerFrame = Welcome | Opened | SnapshotPart | Closed | Ack | IntegrityFrame | Conflict | Error | StateFrame | HistoryFrame | HistoryPart | Reset | Behind | Goaway | Pong | ChatListFrame | ChatSearchFrame | ActiveChatFrame | CharacterListFrame | GroupListFrame | GenerationStarted | GenerationDeltaFrame | GenerationStored | GenerationDone | BackupListFrame | BackupCreated | BackupFrame | TrashListFrame | TrashEmptied | ChatRepairFrame | StatusFrame | FileListFrame | FileFrame;
