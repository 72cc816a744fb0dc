/* Owns the files of the status page: the assembler puts them in as they are. */
#include "proxy/http/assets.h"

#define ASSET(name, path)                                                                          \
    __asm__(".pushsection .rodata\n"                                                               \
            ".global " #name "\n" #name ":\n"                                                      \
            ".incbin \"" path "\"\n"                                                               \
            ".byte 0\n"                                                                            \
            ".popsection\n")

ASSET(asset_page, "proxy/http/page.html");
ASSET(asset_style, "proxy/http/page.css");
ASSET(asset_script, "proxy/http/page.js");
