-- What gateways on nginx do about a request with a token, without the rest of them: the token is read and
-- verified (HS256, through OpenSSL), its end looked at, and the request counted against a limit of its subject.
local ffi = require "ffi"
local json = require "cjson.safe"

ffi.cdef [[
typedef struct evp_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *kind, const void *key, int key_size, const unsigned char *data,
                    size_t size, unsigned char *code, unsigned int *code_size);
int CRYPTO_memcmp(const void *one, const void *other, size_t size);
]]

local LIMIT = 1000000
local code = ffi.new("unsigned char[32]")
local code_size = ffi.new("unsigned int[1]")
local gate, secret = {}, nil

local function decode(text)
  text = text:gsub("-", "+"):gsub("_", "/")
  return ngx.decode_base64(text .. ("="):rep(-#text % 4))
end

function gate.setup(key)
  secret = key
end

local function claims_of(field)
  local head, body, signature = (field or ""):match("^Bearer ([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
  if not head then return nil end
  local protected = json.decode(decode(head) or "")
  if not protected or protected.alg ~= "HS256" then return nil end
  local signed = head .. "." .. body
  ffi.C.HMAC(ffi.C.EVP_sha256(), secret, #secret, signed, #signed, code, code_size)
  local given = decode(signature)
  if not given or #given ~= 32 or ffi.C.CRYPTO_memcmp(code, given, 32) ~= 0 then return nil end
  local claims = json.decode(decode(body) or "")
  if not claims or not claims.sub or (claims.exp and claims.exp < ngx.time()) then return nil end
  return claims
end

function gate.access(counts)
  local claims = claims_of(ngx.var.http_authorization)
  if not claims then return ngx.exit(401) end
  local count = counts:incr(claims.sub .. ":" .. ngx.time(), 1, 0, 2)
  if count and count > LIMIT then return ngx.exit(429) end
  ngx.var.consumer = claims.sub
end

return gate
