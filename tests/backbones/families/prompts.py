"""The published text of a step of two cameras with the prompt "do it", for each family, written by hand.

`{image}` is replaced by the tokens of one image, without the tokens around them. Roles of a conversation are left out,
as readouts follow the prompt instead of an answer. Sources: the processors of transformers 5.23 (`processing_*.py` of a
family) and, where a processor leaves the template to the model, the chat templates on the models' pages. The templates
of Granite 4 Vision, LightOnOCR, VideoLLaMA 3, HyperCLOVA X and EXAONE 4.5 were not available.
"""

from __future__ import annotations

BOS, EOS = "<s>", "</s>"  # of the tests' tokenizer

_FAKE = "<fake_token_around_image>"
_VISION = "<|vision_start|>{image}<|vision_end|>"  # chat_template.json of Qwen/Qwen2-VL-2B-Instruct and its successors
_GLM = "<|begin_of_image|>{image}<|end_of_image|>"  # chat_template.jinja of zai-org/GLM-4.1V-9B-Thinking
_BOXED = "<|image_start|>{image}<|image_end|>"
_INTERN = "<img>{image}</img>\n"
# The model card of llava-hf/llava-1.5-7b-hf: "USER: <image>\n<prompt> ASSISTANT:". With several images, the chat
# template of LLaVA 1.5 puts a line break after each; here, as in LLaVA-OneVision, one line break follows all images.
_LLAVA = BOS + "{image}{image}\ndo it"
_GEMMA3 = BOS + "\n\n<start_of_image>{image}<end_of_image>\n\n" * 2 + "do it"  # Gemma3Processor.full_image_sequence
_PALIGEMMA = "{image}{image}" + BOS + "do it\n"  # build_string_from_input of processing_paligemma.py
_IDEFICS3 = BOS + f"{_FAKE}<global-img>{{image}}{_FAKE}" * 2 + "do it"  # _prompt_single_image of both processors

PROMPTS: dict[str, str] = {
    "llava": _LLAVA,
    "vipllava": _LLAVA,
    "video_llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_next_video": _LLAVA,
    "llava_onevision": _LLAVA,  # chat_template.json: all images, then a line break before the text
    "granite4_vision": _LLAVA,
    "deepseek_ocr2": _LLAVA,  # its card: "<image>\nFree OCR."
    "fast_vlm": _LLAVA,
    "deepseek_vl": BOS + "{image}{image}do it",
    "deepseek_vl_hybrid": BOS + "{image}{image}do it",
    "perception_lm": BOS + "{image}{image}do it",
    "paligemma": _PALIGEMMA,
    "paligemma2": _PALIGEMMA,
    "gemma3": _GEMMA3,
    "t5gemma2": _GEMMA3,
    "gemma4": BOS + "<|image>{image}<image|>" * 2 + "do it",
    "gemma4_bidirectional": BOS + "<|image>{image}<image|>" * 2 + "do it",
    "gemma4_unified": BOS + "<|image>{image}<image|>" * 2 + "do it",
    "smolvlm": _IDEFICS3,
    "idefics3": _IDEFICS3,
    # Adjacent images share the token between them (IdeficsProcessor, Idefics2Processor).
    "idefics": BOS + _FAKE + f"{{image}}{_FAKE}" * 2 + "do it",
    "idefics2": BOS + _FAKE + f"{{image}}{_FAKE}" * 2 + " do it",
    "kosmos-2": BOS + "<image>{image}</image>" * 2 + "do it",
    "kosmos-2.5": BOS + "<image>{image}</image>" * 2 + "do it",
    "qwen2_vl": _VISION * 2 + "do it",
    "qwen2_5_vl": _VISION * 2 + "do it",
    "qwen3_vl": _VISION * 2 + "do it",
    "qwen3_vl_moe": _VISION * 2 + "do it",
    "qwen3_5": _VISION * 2 + "do it",
    "qwen3_5_moe": _VISION * 2 + "do it",
    "glm4v": "[gMASK]<sop>" + _GLM * 2 + "do it",
    "glm4v_moe": "[gMASK]<sop>" + _GLM * 2 + "do it",
    "glm46v": "[gMASK]<sop>" + _GLM * 2 + "do it",
    "glm_ocr": "[gMASK]<sop>" + _GLM * 2 + "do it",
    "paddleocr_vl": BOS + _VISION * 2 + "do it",
    "cohere_compass": BOS + _VISION * 2 + "do it",
    # Its placeholder in vLLM and in its own code: "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>".
    "kimi_k25": BOS + "<|vision_start|>image<|media_content|>{image}<|vision_end|>" * 2 + "do it",
    "ernie4_5_vl_moe": BOS + _BOXED * 2 + "do it",
    "lfm2_vl": BOS + _BOXED * 2 + "do it",
    "lfm3_vl": BOS + _BOXED * 2 + "do it",
    "minicpmv4_6": BOS + "<image>{image}</image>" * 2 + "do it",
    "minicpmv4_7": BOS + "<image>{image}</image>" * 2 + "do it",
    "exaone4_5": BOS + "{image}{image}do it",  # this small configuration names no tokens around an image
    "hyperclovax_vision_v2": BOS + "{image}{image}do it",  # as above
    "video_llama_3": BOS + "{image}\n" * 2 + "do it",
    "lighton_ocr": BOS + "{image}\n" * 2 + "do it",
    # PixtralProcessor.replace_image_token: each row but the last ends in [IMG_BREAK].
    "mistral3": BOS + "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]" * 2 + "do it",
    "pixtral": BOS + ("[IMG][IMG][IMG][IMG_BREAK]" * 2 + "[IMG][IMG][IMG][IMG_END]") * 2 + "do it",
    "internvl": BOS + _INTERN * 2 + "do it",
    "qianfan_ocr": BOS + _INTERN * 2 + "do it",
    "got_ocr2": BOS + _INTERN * 2 + "do it",
    "pp_chart2table": BOS + _INTERN * 2 + "do it",
    "janus": BOS + "<begin_of_image>{image}<end_of_image>\n" * 2 + "do it",
    "aya_vision": BOS + "<|START_OF_IMG|>TILE_GLOBAL{image}<|END_OF_IMG|>" * 2 + "do it",
    "cohere2_vision": BOS + "<|START_OF_IMG|>{image}<|IMG_LINE_BREAK|><|END_OF_IMG|>" * 2 + "do it",
    "ovis2": BOS + "<IMG_START>{image}<IMG_GRID><IMG_END>\n" * 2 + "do it",
    "step3p7": BOS + "<im_start>{image}<im_end>" * 2 + "do it",
    "aria": BOS + "<fim_prefix>{image}<fim_suffix>" * 2 + "do it",
    "llama4": BOS + "<|image_start|><|image|>{image}<|image_end|>" * 2 + "do it",
    "chameleon": BOS + "<racm3:break>{image}<eoss>" * 2 + "do it",
    # The library writes the image tokens before the BOS of the text (Blip2Processor, InstructBlipProcessor).
    "blip2-opt": "{image}{image}" + BOS + "do it",
    "instructblip": "{image}{image}" + BOS + "do it",
    "blip2-t5": "{image}{image}do it" + EOS,
    "instructblip-t5": "{image}{image}do it" + EOS,
    "florence2": "{image}{image}" + BOS + "do it" + EOS,
    "fuyu": ("|SPEAKER|" * 4 + "|NEWLINE|") * 4 * 2 + BOS + "do it<0x04>",
    "emu3": BOS + ("<|image start|>4*4<|image token|>{image}<|extra_201|><|image end|>") * 2 + "do it",
    "molmo2": BOS + ("<low_res_im_start>" + ("<im_patch>" * 3 + "<im_col>") * 3 + "<im_end>") * 2 + "do it",
    "mllama": "{image}{image}" + BOS + "do it",
}
# The tokens of one image, from the sizes of the small models' images and patches.
IMAGE: dict[str, str] = {
    "llava": "<image>" * 16,  # 28 / 7 = 4 patches a side
    "paligemma": "<image>" * 16,
    "smolvlm": "<image>" * 4,  # shuffled two by two
    "idefics3": "<image>" * 4,
    "qwen2_vl": "<|image_pad|>" * 4,  # merged two by two
    "qwen2_5_vl": "<|image_pad|>" * 4,
    "llava_next": "<image>" * 17,  # and image_newline
    "internvl": "<IMG_CONTEXT>" * 4,
    "kosmos-2": "<patch_index_0000>" * 4,  # latent_query_num
    "gemma3": "<image>" * 4,  # mm_tokens_per_image
    "emu3": "<image>" * 4 * 5,  # each row has a token for its end
    "blip2-opt": "<image>" * 4,  # num_query_tokens
    "florence2": "<image>" * 17,  # 32 / 8 = 4 a side, and their mean
    "janus": "<image_placeholder>" * 16,
}
