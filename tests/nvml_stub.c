/* A stand-in for libnvidia-ml.so.1, for the real nvidia-ml-py to talk to where there is no NVIDIA GPU.
 * Written from the public API; no NVIDIA code in it. Built and driven by nvml.py, which says what can be set.
 *
 * Settings are lines "name=value" of the file FAKE_NVML names, read at every call, so that a GPU can be lost and come
 * back while a process looks at it. "gpu1.name=value" is for one GPU, "gpu1.mig0.name=value" for one instance.
 * As with the real one, a handle of a GPU that was lost stays dead until everybody has shut NVML down. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u;
typedef unsigned long long ull;
typedef int R;
enum { OK, UNINITIALIZED, INVALID, UNSUPPORTED, FORBIDDEN, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15, VERSION = 25 };
enum { GPUS = 16, INSTANCES = 7 };

struct dev { int gpu, instance, dead; };
static struct dev whole[GPUS], part[GPUS][INSTANCES];
static int users;

/* settings */

static int found_in_file(const char *name, char *value, size_t size) {
    char line[512];
    size_t length = strlen(name);
    int found = 0;
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, name, length) && line[length] == '=') {
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    if (file) fclose(file);
    return found;
}

static int setting(const struct dev *d, const char *name, char *value, size_t size) {
    char full[128];
    if (d && d->instance >= 0) {
        snprintf(full, sizeof full, "gpu%d.mig%d.%s", d->gpu, d->instance, name);
        if (found_in_file(full, value, size)) return 1;
    }
    if (d) {
        snprintf(full, sizeof full, "gpu%d.%s", d->gpu, name);
        if (found_in_file(full, value, size)) return 1;
    }
    return found_in_file(name, value, size);
}

static long number(const struct dev *d, const char *name, long otherwise) {
    char value[512];
    return setting(d, name, value, sizeof value) ? atol(value) : otherwise;
}

/* the first thing that every function does: hang, fail or find that the GPU is gone, as the settings say */
static R enter(const char *function, struct dev *d) {
    char name[128];
    snprintf(name, sizeof name, "hang.%s", function);
    for (long left = number(d, name, 0) * 20; left > 0 && number(d, name, 0); left--) usleep(50000);
    if (!users && strcmp(function, "nvmlInitWithFlags")) return UNINITIALIZED;
    if (d && number(d, "lost", 0)) whole[d->gpu].dead = 1;
    if (d && whole[d->gpu].dead) return LOST;
    snprintf(name, sizeof name, "fail.%s", function);
    return number(d, name, 0);
}
#define ENTER(d) do { R failed = enter(__func__, d); if (failed) return failed; } while (0)

static u gpus(void) { long n = number(NULL, "count", 2); return n > GPUS ? GPUS : n; }
static int instances(const struct dev *d) { long n = number(d, "mig", -1); return n > INSTANCES ? INSTANCES : n; }
static int split(const struct dev *d) { return instances(d) >= 0; }

/* the library */

R nvmlInitWithFlags(u flags) {
    (void)flags;
    ENTER(NULL);
    for (int i = 0; i < GPUS && !users; i++) {
        whole[i] = (struct dev){ i, -1, 0 };
        for (int k = 0; k < INSTANCES; k++) part[i][k] = (struct dev){ i, k, 0 };
    }
    users++;
    return OK;
}
R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
R nvmlShutdown(void) { ENTER(NULL); users--; return OK; }
const char *nvmlErrorString(R r) { (void)r; return "an error of the stub"; }
R nvmlSystemGetDriverVersion(char *text, u size) { ENTER(NULL); snprintf(text, size, "999.01"); return OK; }

/* handles */

R nvmlDeviceGetCount_v2(u *n) { ENTER(NULL); *n = gpus(); return OK; }
R nvmlDeviceGetHandleByIndex_v2(u i, struct dev **d) {
    if (i >= gpus()) return INVALID;
    ENTER(&whole[i]);
    *d = &whole[i];
    return OK;
}
R nvmlDeviceGetUUID(struct dev *d, char *text, u size) {
    ENTER(d);
    if (d->instance < 0) snprintf(text, size, "GPU-%08x-0000-0000-0000-%012x", d->gpu, d->gpu);
    else snprintf(text, size, "MIG-%08x-0000-0000-0000-%012x", d->gpu, d->instance);
    return OK;
}
R nvmlDeviceGetHandleByUUID(const char *uuid, struct dev **d) {
    u gpu, instance;
    if (sscanf(uuid, "GPU-%8x", &gpu) == 1) *d = &whole[gpu % GPUS];
    else if (sscanf(uuid, "MIG-%8x-0000-0000-0000-%12x", &gpu, &instance) == 2)
        *d = &part[gpu % GPUS][instance % INSTANCES];
    else return INVALID;
    ENTER(*d);
    return gpu < gpus() && ((*d)->instance < 0 || (*d)->instance < instances(*d)) ? OK : NOT_FOUND;
}
R nvmlDeviceGetName(struct dev *d, char *text, u size) {
    ENTER(d);
    if (!setting(d, "name", text, size)) snprintf(text, size, "Fake GPU %d", d->gpu);
    if (d->instance >= 0 && !number(d, "plain_names", 0)) strncat(text, " MIG 1g.10gb", size - strlen(text) - 1);
    return OK;
}
R nvmlDeviceGetCudaComputeCapability(struct dev *d, int *major, int *minor) { ENTER(d); *major = 8; *minor = 9; return OK; }

/* MIG */

R nvmlDeviceGetMigMode(struct dev *d, u *now, u *later) {
    ENTER(d);
    if (!number(d, "can_mig", split(d))) return UNSUPPORTED;
    *now = *later = split(d);
    return OK;
}
R nvmlDeviceGetMaxMigDeviceCount(struct dev *d, u *n) { ENTER(d); *n = split(d) ? INSTANCES : 0; return OK; }
R nvmlDeviceGetMigDeviceHandleByIndex(struct dev *d, u i, struct dev **found) {
    ENTER(d);
    if ((int)i >= instances(d)) return NOT_FOUND;
    *found = &part[d->gpu][i];
    return OK;
}
struct attributes { u multiprocessors, engines[5], gpu_slices, compute_slices; ull memory_mb; };
R nvmlDeviceGetAttributes_v2(struct dev *d, struct attributes *a) {
    ENTER(d);
    *a = (struct attributes){ .multiprocessors = 14, .gpu_slices = 1, .compute_slices = 1 };
    a->memory_mb = number(d, "memory_total_mb", 9856);
    return OK;
}

/* readings */

struct mem { ull total, free, used; };
struct mem2 { u version; ull total, reserved, free, used; };
R nvmlDeviceGetMemoryInfo(struct dev *d, struct mem *m) {
    ENTER(d);
    if (number(d, "unified", 0)) return UNSUPPORTED;
    m->total = (ull)number(d, "memory_total_mb", d->instance < 0 ? 24576 : 9856) << 20;
    m->used = (ull)(number(d, "memory_used_mb", 1024) + number(d, "memory_reserved_mb", 300)) << 20;
    m->free = m->total - m->used;
    return OK;
}
R nvmlDeviceGetMemoryInfo_v2(struct dev *d, struct mem2 *m) {
    ENTER(d);
    if (number(d, "unified", 0)) return UNSUPPORTED;
    if (m->version != (sizeof *m | 2 << 24)) return VERSION;
    m->total = (ull)number(d, "memory_total_mb", d->instance < 0 ? 24576 : 9856) << 20;
    m->used = (ull)number(d, "memory_used_mb", 1024) << 20;
    m->reserved = (ull)number(d, "memory_reserved_mb", 300) << 20;
    m->free = m->total - m->used - m->reserved;
    return OK;
}
struct busy { u gpu, memory; };
R nvmlDeviceGetUtilizationRates(struct dev *d, struct busy *b) {
    ENTER(d);
    if (split(d)) return UNSUPPORTED;
    b->gpu = number(d, "utilisation", 37);
    b->memory = b->gpu / 2;
    return OK;
}
static R sensor(struct dev *d, const char *name, long otherwise, u *value) {
    if (d->instance >= 0) return INVALID;
    *value = number(d, name, otherwise);
    return OK;
}
R nvmlDeviceGetTemperature(struct dev *d, u which, u *t) { (void)which; ENTER(d); return sensor(d, "temperature", 55, t); }
struct celsius { u version; int which, value; };
R nvmlDeviceGetTemperatureV(struct dev *d, struct celsius *t) { ENTER(d); return sensor(d, "temperature", 55, (u *)&t->value); }
/* "busy_pid": with it, the GPU takes power_mw while that process runs, and idle_power_mw while it is stopped or gone */
static int runs(long pid) {
    char name[64], state = 0;
    snprintf(name, sizeof name, "/proc/%ld/stat", pid);
    FILE *file = fopen(name, "r");
    if (file && fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 0;
    if (file) fclose(file);
    return state && state != 'T' && state != 'Z';
}
R nvmlDeviceGetPowerUsage(struct dev *d, u *mw) {
    ENTER(d);
    long busy = number(d, "busy_pid", 0);
    return busy && !runs(busy) ? sensor(d, "idle_power_mw", 50000, mw) : sensor(d, "power_mw", 123000, mw);
}

/* the limit that was set is in a file beside the settings, for all processes; setting it is root's, "may_limit" */
static FILE *limit_file(const struct dev *d, const char *mode) {
    char name[512];
    snprintf(name, sizeof name, "%s.limit%d", getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", d->gpu);
    return fopen(name, mode);
}
static R power_limit(struct dev *d, u *mw) {
    R failed = sensor(d, "power_limit_mw", 350000, mw);
    FILE *file = failed ? NULL : limit_file(d, "r");
    if (file && fscanf(file, "%u", mw) != 1) failed = INVALID;
    if (file) fclose(file);
    return failed;
}
R nvmlDeviceGetEnforcedPowerLimit(struct dev *d, u *mw) { ENTER(d); return power_limit(d, mw); }
R nvmlDeviceGetPowerManagementLimit(struct dev *d, u *mw) { ENTER(d); return power_limit(d, mw); }
R nvmlDeviceGetPowerManagementLimitConstraints(struct dev *d, u *least, u *most) {
    ENTER(d);
    R failed = sensor(d, "least_limit_mw", 100000, least);
    return failed ? failed : sensor(d, "most_limit_mw", 350000, most);
}
R nvmlDeviceSetPowerManagementLimit(struct dev *d, u mw) {
    u least, most;
    ENTER(d);
    if (!number(d, "may_limit", 0)) return FORBIDDEN;
    R failed = nvmlDeviceGetPowerManagementLimitConstraints(d, &least, &most);
    if (failed || mw < least || mw > most) return failed ? failed : INVALID;
    FILE *file = limit_file(d, "w");
    if (!file) return INVALID;
    fprintf(file, "%u", mw);
    fclose(file);
    return OK;
}

/* processes: "pid:MiB,pid:MiB", where -1 MiB is "not available" */

struct process { u pid; ull memory; u gpu_instance, compute_instance; };
static R processes(struct dev *d, const char *name, u *n, struct process *list) {
    char value[512];
    u count = 0, room = *n;
    if (!setting(d, name, value, sizeof value)) value[0] = 0;
    for (char *entry = strtok(value, ","); entry; entry = strtok(NULL, ","), count++) {
        long mib = strchr(entry, ':') ? atol(strchr(entry, ':') + 1) : 512;
        if (list && count < room) list[count] = (struct process){ atol(entry), mib < 0 ? -1ull : (ull)mib << 20, -1, -1 };
    }
    *n = count;
    return count > room ? TOO_SMALL : OK;
}
R nvmlDeviceGetComputeRunningProcesses_v3(struct dev *d, u *n, struct process *list) { ENTER(d); return processes(d, "compute", n, list); }
R nvmlDeviceGetComputeRunningProcesses_v2(struct dev *d, u *n, struct process *list) { ENTER(d); return processes(d, "compute", n, list); }
R nvmlDeviceGetGraphicsRunningProcesses_v3(struct dev *d, u *n, struct process *list) { ENTER(d); return processes(d, "graphics", n, list); }
R nvmlDeviceGetGraphicsRunningProcesses_v2(struct dev *d, u *n, struct process *list) { ENTER(d); return processes(d, "graphics", n, list); }

/* how busy each kept it: "use=pid:percent,pid:percent"; a driver that does not tell says use=-1 */
struct sample { u pid; ull when; u sm, memory, encoder, decoder; };
R nvmlDeviceGetProcessUtilization(struct dev *d, struct sample *list, u *n, ull since) {
    char value[512];
    u count = 0, room = *n;
    (void)since;
    ENTER(d);
    if (!setting(d, "use", value, sizeof value)) return NOT_FOUND;
    if (value[0] == '-') return UNSUPPORTED;
    for (char *entry = strtok(value, ","); entry; entry = strtok(NULL, ","), count++)
        if (list && count < room) list[count] = (struct sample){ .pid = atol(entry), .sm = atol(strchr(entry, ':') + 1) };
    *n = count;
    return !count ? NOT_FOUND : count > room || !list ? TOO_SMALL : OK;
}
