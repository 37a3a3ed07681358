/* bias_rules.h - the update functions that the table in bias.c lists; private to router/ */
#ifndef ROUTER_BIAS_RULES_H
#define ROUTER_BIAS_RULES_H

#include "router/bias.h"

typedef void bias_update(const struct bias_batch *batch, double *bias);

/* bias_sign.c: only whether an expert is over or under its mean counts */
bias_update bias_update_sign, bias_update_centred_sign;
/* bias_error.c: how far it is counts too */
bias_update bias_update_proportional, bias_update_longcat, bias_update_smebu;
/* bias_dual.c: the bias that would have balanced the batch */
bias_update bias_update_quantile, bias_update_bip;

#endif
