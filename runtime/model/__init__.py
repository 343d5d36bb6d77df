"""The loop over any executor: transformer, text encoder, decoder, sampler, noise."""
