/*
 * Stand-in for a container plug-in: --container-* is accepted by srun, sbatch and salloc, and each option given reaches
 * the task as an environment variable, --container-image as STANDIN_CONTAINER_IMAGE. Nothing runs in a container.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slurm/spank.h>

SPANK_PLUGIN(standin, 1)

struct option {
    const char *name, *argument; /* argument: NULL where the option is a mere switch */
    char *given;
};

static struct option options[] = {
    {"container-image", "IMAGE"},        {"container-mounts", "SRC:DST[:FLAGS]"}, {"container-workdir", "PATH"},
    {"container-name", "NAME"},          {"container-save", "PATH"},              {"container-env", "NAME[,NAME]"},
    {"container-mount-home", NULL},      {"no-container-mount-home", NULL},       {"container-remap-root", NULL},
    {"no-container-remap-root", NULL},   {"container-writable", NULL},            {"container-readonly", NULL},
    {"container-entrypoint", NULL},      {"no-container-entrypoint", NULL},
};
enum { COUNT = sizeof options / sizeof options[0] };

static int remember(int which, const char *argument, int remote)
{
    free(options[which].given);
    options[which].given = strdup(argument && *argument ? argument : "1");
    return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int count, char **words)
{
    if (spank_context() == S_CTX_SLURMD)
        return ESPANK_SUCCESS;
    for (int i = 0; i < COUNT; i++) {
        struct spank_option one = {(char *)options[i].name, (char *)options[i].argument, "stand-in of the tests",
                                   options[i].argument != NULL, i, remember};
        if (spank_option_register(spank, &one) != ESPANK_SUCCESS)
            return ESPANK_ERROR;
    }
    return ESPANK_SUCCESS;
}

int slurm_spank_task_init(spank_t spank, int count, char **words)
{
    char variable[64];
    for (int i = 0; i < COUNT; i++) {
        if (options[i].given == NULL)
            continue;
        int length = snprintf(variable, sizeof variable, "STANDIN_%s", options[i].name);
        for (int k = 0; k < length; k++)
            variable[k] = variable[k] == '-' ? '_' : toupper(variable[k]);
        spank_setenv(spank, variable, options[i].given, 1);
    }
    return ESPANK_SUCCESS;
}
